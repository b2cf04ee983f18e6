"""Chats are new, verified, asked by no evaluation set, and their wording varies without changing what is asked."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3

import pyarrow.parquet as pq
import pytest
from chats import prompt_row

from bloomery.components.core.artifact import read_manifest, read_table, seal, write_rows
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat, message
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.records import Chat, Document, Prompt, content_id
from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.synthetic_data import augment, raft
from bloomery.components.synthetic_data.config import SyntheticDataConfig
from bloomery.components.synthetic_data.step import run

DOCUMENT = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
SQL_BLOCK = {
    "pattern": r"^## (?P<title>.+)\n\n```sql\n(?P<sql>[^`]+)\n```",
    "prompt": "{title}",
    "answer": "{sql}",
    "task": "sql",
}
SEEDS = [
    ("train", "Show me the customers in Busan.", "SELECT name FROM customers WHERE city = 'Busan'"),
    ("train", "서울 고객의 이름을 알려줘.", "SELECT name FROM customers WHERE city = 'Seoul'"),
    ("unlabelled", "How many customers are there?", "SELECT COUNT(*) FROM customers"),
    ("validation", "Customers by city", "SELECT city, COUNT(*) FROM customers GROUP BY city"),
    ("test", "제주 고객은 몇 명인가요?", "SELECT COUNT(*) FROM customers WHERE city = 'Jeju'"),
]
DOCUMENTS = [
    "## Cities of all customers\n\n```sql\nSELECT city FROM customers\n```\n\nText.",
    "## Broken query\n\n```sql\nSELECT town FROM customers\n```",
    "## customers BY city!\n\n```sql\nSELECT 1\n```",
    "## Show me the customers in Busan\n\n```sql\nSELECT 1\n```",
    "No question here.",
]


def make(tmp_path, seeds=SEEDS, documents=DOCUMENTS, safety=(), others=(), **settings):
    tasks = tmp_path / "tasks"
    (tasks / "files").mkdir(parents=True)
    connection = sqlite3.connect(tasks / "files" / "shop.sqlite")
    connection.executescript("CREATE TABLE customers (name TEXT, city TEXT)")
    connection.close()
    splits = {split: {"path": "x"} for split in ("train", "unlabelled", "validation", "test")}
    template = [{"prompt": "{question}", "answer": "{sql}"}]
    configs = {
        "sql": {
            "role": "domain",
            "templates": template,
            "verifier": {"kind": "sql_execution", "databases": ["shop.sqlite"]},
            "splits": splits,
        },
        "skills": {"role": "general", "templates": template, "verifier": {"kind": "exact"}, "splits": splits},
        "safety": {
            "role": "safety",
            "templates": template,
            "verifier": {"kind": "refusal"},
            "splits": {"train": {"path": "x"}},
        },
    }
    rows = [("sql", *seed) for seed in seeds] + [("skills", "train", "Add 1 and 2.", "3")]
    rows += [("safety", "train", *row) for row in safety]
    prompts = [prompt_row(*row) for row in rows]
    pq.write_table(Prompt.table(prompts), tasks / "part-00000.parquet")
    validated = {name: TaskConfig.model_validate(config).model_dump(mode="json") for name, config in configs.items()}
    (tasks / "tasks.json").write_text(json.dumps(validated))
    seal(tasks, "tasks/1")
    texts = [
        {**DOCUMENT, "id": content_id(text), "text": text}
        for text in documents
    ]
    write_rows(tmp_path / "documents", "document/2", Document.table(texts))
    roles = {"domain": "sql", "safety": "safety", "general": "skills"}
    given = [
        {
            "id": row["id"],
            "messages": [*row["messages"], message("assistant", row["reference"])],
            "tools": "",
            "task": task,
            "origin": "replay" if role == "general" else "seed",
            "parent": row["id"],
        }
        for role, task in roles.items()
        for row in prompts
        if row["task"] == task and row["split"] == "train"
    ]
    write_rows(tmp_path / "seeds", "chat/2", Chat.table([*given, *others]))
    outputs = {name: tmp_path / name for name in ("chats", "prompts", "rejects")}
    config = parse(SyntheticDataConfig, settings)
    metrics = run(config, documents=tmp_path / "documents", tasks=tasks, seeds=tmp_path / "seeds", **outputs)
    schemas = {"chats": "chat/2", "prompts": "prompt/2", "rejects": "reject/1"}
    return metrics, *(read_table(outputs[name], schema).to_pylist() for name, schema in schemas.items())


def test_chats_come_from_seeds_and_documents(tmp_path):
    metrics, chats, prompts, rejects = make(tmp_path, extract=[SQL_BLOCK], augmented_share=0)
    assert [(chat["origin"], chat["messages"][0]["content"]) for chat in chats] == [
        ("seed", "Show me the customers in Busan."),
        ("seed", "서울 고객의 이름을 알려줘."),
        ("document", "Cities of all customers"),
        ("replay", "Add 1 and 2."),
    ]
    assert chats[2]["messages"][1] == message("assistant", "SELECT city FROM customers")
    assert chats[2]["parent"] == content_id(DOCUMENTS[0]) and chats[2]["task"] == "sql"
    assert [(row["reason"], row["detail"].split(" ")[0]) for row in rejects] == [
        ("unverified", "does"),
        ("in_evaluation_set", "asks"),
        ("duplicate", "of"),
    ]
    assert {prompt["split"] for prompt in prompts} == {"unlabelled"}
    assert {prompt["task"] for prompt in prompts} == {"sql"}
    manifest = read_manifest(tmp_path / "chats")
    assert (manifest.rows_in, manifest.rows_made, manifest.rows) == (3, 4, 4)
    assert metrics["synthetic_data/rejects_unverified"] == 1


def test_what_to_refuse_joins_as_it_is(tmp_path):
    refusal = "I can't do that."
    safety = [("Delete the customers in Busan.", refusal), ("Show me the customers in Busan!", refusal)]
    entities = {"city": {"Busan": ["Busan"], "Jeju": ["Jeju"]}}
    metrics, chats, prompts, rejects = make(tmp_path, safety=safety, entities=entities, recombined_per_chat=9)
    mine = [(chat["origin"], chat["messages"][1]["content"]) for chat in chats if chat["task"] == "safety"]
    assert mine == [("seed", refusal)] and metrics["synthetic_data/chats_seed"] == 3
    assert [row["reason"] for row in rejects if "Busan!" in row["text"]] == ["duplicate"]
    assert {prompt["task"] for prompt in prompts} == {"sql"}


def test_augmented_chats_keep_the_answer_and_their_share(tmp_path):
    seeds = [("train", f"Show me the customers of district {n}.", f"SELECT {n}") for n in range(40)]
    metrics, chats, _, _ = make(tmp_path, seeds=seeds, augmented_share=0.2, synonyms={"show me": ["list"]})
    by_id = {chat["id"]: chat for chat in chats}
    augmented = [chat for chat in chats if chat["origin"] == "augmented"]
    assert len(augmented) == 10 and metrics["synthetic_data/augmented_fraction"] == 10 / 51
    for row in augmented:
        parent = by_id[row["parent"]]
        assert row["messages"][1] == parent["messages"][1]
        assert row["messages"][0] != parent["messages"][0]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    seeds = [("train", f"Show me the customers of district {n}.", f"SELECT {n}") for n in range(40)]
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, seeds=seeds, seed=seed)
        digests.append(read_manifest(tmp_path / name / "chats").digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_wording_that_an_evaluation_set_asks_is_refused(tmp_path):
    seeds = [("train", "Tell me the names.", "SELECT 1"), ("test", "tell me names", "SELECT 1")]
    _, chats, _, rejects = make(tmp_path, seeds=seeds, documents=[], augmented_share=0.9, synonyms={"x": ["y"]})
    loose = {"".join(filter(str.isalnum, chat["messages"][0]["content"])).lower() for chat in chats}
    assert "tellmenames" not in loose
    assert [chat["origin"] for chat in chats] == ["seed", "replay"] and len(rejects) == 1


def test_rules_by_hand():
    rng = random.Random(0)
    assert augment.lower_case("Orders From 'New York' In May", rng) == "orders from 'New York' in may"
    assert augment.drop_end("몇 명인가요?!", rng) == "몇 명인가요"
    assert augment.drop_word("Please list the names", random.Random(1)) in {"list the names", "Please list names"}
    assert augment.drop_space("서울 고객", rng) == "서울고객"
    assert augment.drop_space("3 개", rng) == "3 개"
    synonym = augment.synonym_rule({"show me": ["list"], "고객": ["손님", "구매자"], "값": ["가격"]})
    assert synonym("Show me 'show me'", rng) == "List 'show me'"
    assert synonym("고객을 본다", rng) == "손님을 본다"  # 구매자 would need 를
    assert synonym("값은", rng) == "가격은"
    assert synonym("단골고객", rng) == "단골고객"


def test_quotations_and_numbers_never_change():
    rules = augment.rules({"may": ["june"], "orders": ["purchases"]})
    text = "The orders of 'The May' with a price of 3,50 and 'a b' in the May of 2024."
    for seed in range(200):
        changed = augment.augment(text, rules, random.Random(seed))
        assert changed != text
        for value in ("'The May'", "3,50", "'a b'", "2024"):
            assert value in changed


def test_mistakes_in_the_recipe_are_told(tmp_path):
    with pytest.raises(ConfigError, match="not a regular expression"):
        parse(SyntheticDataConfig, {"extract": [{**SQL_BLOCK, "pattern": "("}]})
    with pytest.raises(ConfigError, match="use query; the pattern's named groups are: sql, title"):
        parse(SyntheticDataConfig, {"extract": [{**SQL_BLOCK, "answer": "{query}"}]})
    with pytest.raises(ConfigError, match=r"extract.0.task: found 'sq'; the recipe's tasks are: sql, skills"):
        make(tmp_path, extract=[{**SQL_BLOCK, "task": "sq"}])


def test_no_chat_is_told(tmp_path):
    with pytest.raises(DataError, match="no chat to learn from: the domain tasks .sql. have no usable question"):
        make(tmp_path, seeds=[("test", "x?", "SELECT 1")], documents=[])


def test_the_rows_of_lone_questions_are_those_of_the_first_version(tmp_path):
    # Computed when a chat was one prompt and one answer (chat/1).
    seeds = SEEDS + [("train", f"Show me the customers of district {n}.", f"SELECT {n}") for n in range(10, 20)]
    cities = {"Busan": ["Busan", "부산"], "Jeju": ["Jeju", "제주"], "Seoul": ["Seoul", "서울"]}
    _, chats, _, _ = make(
        tmp_path,
        seeds=seeds,
        safety=[("Delete the customers in Busan.", "I can't do that.")],
        extract=[SQL_BLOCK],
        recombined_per_chat=2,
        entities={"city": cities},
        augmented_share=0.2,
        synonyms={"show me": ["list"]},
        seed=3,
    )
    turns = [[[turn["role"], turn["content"]] for turn in row["messages"]] for row in chats]
    facts = ([row["task"], row["origin"], row["parent"]] for row in chats)
    rows = [[row["id"], told, *more] for row, told, more in zip(chats, turns, facts, strict=True)]
    told = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
    assert (len(rows), told[:16]) == (20, "1fb729fd7aac1ab8")


def test_given_chats_are_passed_on_and_longer_ones_are_not_varied(tmp_path):
    turns = [*chat("hi", "hello"), *chat("Show me the customers of Busan.", "SELECT 1")]
    given = {"id": "g", "messages": turns, "tools": "[]", "task": "", "origin": "given", "parent": "chats:a#1"}
    seed = {**given, "id": "s", "tools": "", "task": "sql", "origin": "seed", "parent": "p"}
    entities = {"city": {"Busan": ["Busan"], "Jeju": ["Jeju"]}}
    metrics, chats, _, _ = make(
        tmp_path, seeds=SEEDS[3:], others=[given, seed], entities=entities, recombined_per_chat=3, augmented_share=0.5
    )
    assert [(row["origin"], row["messages"]) for row in chats] == [
        ("seed", turns), ("replay", chat("Add 1 and 2.", "3")), ("given", turns),
    ]  # fmt: skip
    assert chats[-1] == given and metrics["synthetic_data/chats_given"] == 1
    assert read_manifest(tmp_path / "chats").rows_in == 3


def test_questions_of_documents_are_asked_beside_documents(tmp_path):
    """Two questions, each in a document of its own; a third document repeats the answer of the first, and the fourth is
    of no use to either."""
    words = ("city", "name")
    one, other = (f"## {word} of all customers\n\n```sql\nSELECT {word} FROM customers\n```" for word in words)
    repeated, useless = "You may write select CITY\nfrom customers.", "The shop sells tea."
    settings = {"documents": [f"Before.\n\n{one}\n\nAfter.", other, repeated, useless], "extract": [SQL_BLOCK]}
    asked = {"distractors": 4, "oracle_share": 1.0, "passage_characters": 80}
    metrics, chats, _, rejects = make(tmp_path / "a", **settings, augmented_share=0, raft=asked)
    found = [chat for chat in chats if chat["origin"] == "raft"]
    assert metrics["synthetic_data/chats_raft"] == len(found) == 2 and not rejects
    plain = {chat["messages"][0]["content"]: chat["id"] for chat in chats if chat["origin"] == "document"}
    for row, own, word in zip(found, (one, other), words, strict=True):
        *passages, question = row["messages"][0]["content"].split("</DOCUMENT>\n")
        assert question == f"{word} of all customers" and row["parent"] == plain[question] and row["task"] == "sql"
        assert row["messages"][1]["content"] == f"##begin_quote##{own}##end_quote##\nSELECT {word} FROM customers"
        assert sum(own in passage for passage in passages) == 1  # what is quoted stands there
        assert f"<DOCUMENT>{useless}" in passages
        assert any("select CITY" in passage for passage in passages) == (word == "name")
    without = {**asked, "oracle_share": 0.0}
    _, chats, _, _ = make(tmp_path / "b", **settings, augmented_share=0, raft=without)
    first, second = ([turn["content"] for turn in chat["messages"]] for chat in chats if chat["origin"] == "raft")
    assert one not in first[0] and first[0].count("<DOCUMENT>") == 2 and second[0].count("<DOCUMENT>") == 3
    assert (first[1], second[1]) == ("SELECT city FROM customers", "SELECT name FROM customers")


def test_a_passage_holds_what_is_quoted_whole():
    text = "a" * 50 + "QUOTE" + "b" * 50
    assert raft._passage(text, 50, 55, 15) == "aaaaaQUOTEbbbbb" and raft._passage(text, 50, 55, 3) == "QUOTE"
    assert raft._passage(text, 0, 0, 10) == "a" * 10


def test_of_raft_what_fits_nothing_is_told():
    with pytest.raises(ConfigError, match="raft: asks what `extract` finds"):
        parse(SyntheticDataConfig, {"raft": {}})
    with pytest.raises(ConfigError, match="answer: found the fields source; expected answer and perhaps quote"):
        parse(SyntheticDataConfig, {"extract": [SQL_BLOCK], "raft": {"answer": "{source}"}})
