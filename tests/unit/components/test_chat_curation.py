"""Files of chats become chats: every turn reaches training, nothing twice, no secrets, no evaluation question."""

from __future__ import annotations

import json
from pathlib import Path

import outside
import pytest
from chats import write_chats

from bloomery.components.chat_curation.config import ChatCurationConfig
from bloomery.components.chat_curation.step import run
from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat, for_template, message
from bloomery.components.core.data.files import list_files
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Source

TASK = {
    "role": "domain",
    "templates": [{"prompt": "{q}", "answer": "{a}"}],
    "verifier": {"kind": "exact"},
    "splits": {"test": {"path": ""}},
}
EVALUATED = "Which clerk hands over parcels on Sunday afternoons?"


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def curate(tmp_path, make_tasks):
    tasks = make_tasks({"t": TASK}, [{"task": "t", "split": "test", "prompt": EVALUATED, "reference": "Kim"}])

    def go(chats=(), pairs=(), seeds=None, **settings):
        named = {"chats": [], "preferences": []}
        for key, rows in (("chats", chats), ("preferences", pairs)):
            if isinstance(rows, str | Path):
                named[key] = [{"name": key, "path": str(rows)}]
            elif rows:
                (tmp_path / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                named[key] = [{"name": key, "path": str(tmp_path / f"{key}.jsonl")}]
        config = ChatCurationConfig(**named, **settings)
        found = [
            {"uri": uri, "name": source.name, "bytes": 1, "sha256": ""}
            for source in config.inputs
            for uri in list_files(source.path)
        ]
        artifact.write_rows(tmp_path / "sources", "source/1", Source.table(found))
        out = {name: tmp_path / "out" / name for name in ("chats", "preferences", "rejects")}
        metrics = run(config, sources=tmp_path / "sources", tasks=tasks, seeds=seeds, **out)
        schemas = {"chats": "chat/2", "preferences": "preference/3", "rejects": "reject/1"}
        return metrics, *(artifact.read_table(out[name], schema).to_pylist() for name, schema in schemas.items())

    return go


def test_mixed_forms_are_read_told_and_passed_on_after_the_seeds(curate, tmp_path, caplog):
    rows = [
        {"messages": turns("Where is the desk?", "In the hall.")},
        {"conversations": [{"from": "human", "value": "Who is there?"}, {"from": "gpt", "value": "The clerk is."}]},
        {"messages": turns("Only a question")},
    ]
    seeds = write_chats(tmp_path / "s", [("say ab", "ab")])
    metrics, chats, pairs, rejects = curate(rows, seeds=seeds)
    assert [row["messages"] for row in chats] == [
        chat("say ab", "ab"), chat("Where is the desk?", "In the hall."), chat("Who is there?", "The clerk is."),
    ]  # fmt: skip
    assert [row["origin"] for row in chats] == ["seed", "given", "given"]
    assert chats[1]["parent"] == "chats:chats.jsonl#1" and pairs == []
    assert [(row["reason"], row["source"]) for row in rejects] == [("no_assistant_turn", "chats:chats.jsonl#3")]
    assert metrics["chat_curation/form_messages"] == metrics["chat_curation/form_sharegpt"] == 1
    assert metrics["chat_curation/chats"] == 3 and metrics["chat_curation/rejects_no_assistant_turn"] == 1
    assert "chats:chats.jsonl holds 1 messages, 1 sharegpt" in caplog.text


def test_copies_go_and_the_like_with_other_facts_stays(curate, caplog):
    context = "The handbook says that parcels are weighed at the counter and stamped before they leave the house. " * 5
    rows = [
        {"messages": turns("When does the office in Aldport open?", "The office in Aldport opens early at 7.")},
        {"messages": turns("when does the office in  Aldport open?", "The office in Aldport opens early at 7.")},
        {"messages": turns("When does the office in Aldport open today?", "The office in Aldport opens early at 7!!")},
        {"messages": turns("When does the office in Aldport open?", "The office in Aldport opens early at 8.")},
        {"messages": turns(f"{context}Who weighs?", "It is the clerk at the counter who weighs them.")},
        {"messages": turns(f"{context}Who stamps?", "Nobody: a machine does.")},
        {"system": "Be rude.", "messages": turns("When does the office in Aldport open?",
                                                 "The office in Aldport opens early at 7.")},
    ]  # fmt: skip
    _, chats, _, rejects = curate(rows)
    assert [row["parent"].rpartition("#")[2] for row in chats] == ["1", "4", "5", "6", "7"]
    assert [(row["reason"], row["detail"].partition(",")[0]) for row in rejects] == [
        ("exact_duplicate", "of chats:chats.jsonl#1"),
        ("near_duplicate", "of chats:chats.jsonl#1"),
    ]
    assert "2 of 7 chats and pairs are copies: the gate refuses" in caplog.text


def test_a_chat_that_asks_an_evaluation_question_is_dropped(curate):
    rows = [{"messages": turns("hi", "hello", EVALUATED.upper(), "Kim")}, {"messages": turns("New?", "Nothing.")}]
    pairs = [{"prompt": asked, "chosen": "Kim", "rejected": "Lee"} for asked in (EVALUATED, "Who?")]
    _, chats, preferences, rejects = curate(rows, pairs)
    assert len(chats) == len(preferences) == 1
    assert [row["reason"] for row in rejects] == ["contaminated", "contaminated"]
    assert rejects[0]["detail"].endswith("t/test, overlap 1.00")


def test_personal_data_is_masked_in_every_text_and_json_stays_json(curate):
    call = {"id": "c", "function": {"name": "mail", "arguments": json.dumps({"to": "kim@shop.kr", "n": 3})}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Write as kim@shop.kr."},
                {"role": "user", "content": "call 010-1234-5678"},
                {"role": "assistant", "content": None, "reasoning": "kim@shop.kr?", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": '{"from": "kim@shop.kr"}'},
                {"role": "assistant", "content": "Done."},
            ]
        }
    ]
    metrics, (found,), _, _ = curate(rows)
    system, user, calling, result, _ = for_template(found["messages"])
    assert (system["content"], user["content"]) == ("Write as [EMAIL].", "call [PHONE]")
    assert calling["reasoning_content"] == "[EMAIL]?" and json.loads(result["content"]) == {"from": "[EMAIL]"}
    assert calling["tool_calls"][0]["function"]["arguments"] == {"to": "[EMAIL]", "n": 3}
    assert metrics["chat_curation/masked_email"] == 4 and metrics["chat_curation/masked_phone"] == 1
    _, (found,), _, _ = curate(rows, mask=["phone"])
    assert found["messages"][0]["content"] == "Write as kim@shop.kr."


def test_pairs_and_labels_become_preferences(curate):
    pairs = [
        {"prompt": "Who?", "chosen": "The clerk.", "rejected": "No."},
        {"prompt": "Who?", "chosen": "The clerk.", "rejected": "No."},
        {"prompt": "Who?", "chosen": "The clerk.", "rejected": "Nobody."},
        {"prompt": "Who?", "completion": "The clerk.", "label": False},
        {"prompt": "Who?", "chosen": "Same.", "rejected": "Same."},
        *({"prompt": "Who?", "completion": "The clerk.", "score": score} for score in (1, 4, 4)),  # of two who judged
    ]
    metrics, chats, found, rejects = curate(pairs=pairs)
    assert chats == [] and metrics["chat_curation/preferences"] == 5
    clerk = [message("assistant", "The clerk.")]
    assert [(row["chosen"], row["rejected"], row["score"]) for row in found] == [
        (clerk, [message("assistant", "No.")], None),
        (clerk, [message("assistant", "Nobody.")], None),
        ([], clerk, None),
        (clerk, [], 1),
        (clerk, [], 4),
    ]
    assert len({row["id"] for row in found}) == 5
    assert [row["reason"] for row in rejects] == ["exact_duplicate", "identical", "exact_duplicate"]


def test_a_file_without_a_conversation_is_no_source_of_chats(curate):
    told = r"chats.jsonl can be learnt from .1 unknown_form; the first is chats:chats.jsonl#1, .*question, answer"
    with pytest.raises(DataError, match=told):
        curate([{"question": "Who?", "answer": "The clerk."}])


def test_a_table_of_another_delimiter_and_an_empty_file_are_told(curate, tmp_path):
    (tmp_path / "t.csv").write_text("instruction|output\nWho?|The clerk.\n")
    with pytest.raises(DataError, match=r'the first is chats:t.csv#2, .*set `delimiter: "\|"`'):
        curate(tmp_path / "t.csv")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"there is no row in .*e.jsonl"):
        curate(tmp_path / "e.jsonl")


def test_deep_json_that_a_tool_answers_is_masked_as_text(curate):
    call = {"id": "c", "function": {"name": "now", "arguments": "{}"}}
    deep = "[" * 600 + '"010-1234-5678"' + "]" * 600
    rows = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": deep},
        {"role": "assistant", "content": "That."},
    ]
    (chat_row,) = curate([{"messages": rows}])[1]
    assert chat_row["messages"][2]["content"] == deep.replace("010-1234-5678", "[PHONE]")


def test_a_file_of_a_glob_keeps_its_name(curate, tmp_path):
    (tmp_path / "train-1.jsonl").write_text(json.dumps({"messages": turns("Where is the desk?", "In the hall.")}))
    (row,) = curate(tmp_path / "train-*.jsonl")[1]
    assert row["parent"] == "chats:train-1.jsonl#1"


def test_no_source_or_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="nothing to read"):
        ChatCurationConfig()
    with pytest.raises(ValueError, match="share the name a"):
        ChatCurationConfig(chats=[{"name": "a", "path": "x"}], preferences=[{"name": "a", "path": "y"}])


def test_the_same_rows_give_the_same_bytes(curate, tmp_path):
    rows = [{"messages": turns(f"Where is desk {n}?", f"In hall {n}.")} for n in range(30)]
    digests = []
    for _ in range(2):
        curate(rows)
        digests.append(artifact.read_manifest(tmp_path / "out" / "chats").digest)
    assert digests[0] == digests[1]


def test_the_files_of_the_field(curate):
    cases = outside.folder("BLOOMERY_CASES")
    for name, kept in (("messages.jsonl", 12), ("sharegpt.jsonl", 12), ("tools.jsonl", 12), ("alpaca_nulls.json", 12)):
        metrics, chats, _, _ = curate(cases / name)
        assert len(chats) == kept == metrics["chat_curation/kept_chats"]
        text = json.dumps([for_template(row["messages"]) for row in chats])
        assert "None" not in text and "'" not in text
