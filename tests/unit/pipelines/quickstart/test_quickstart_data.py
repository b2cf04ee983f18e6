"""The quickstart data: what the rest of the quickstart relies on. No model is trained here."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from bloomery.components.core.scoring.refusal import is_refusal
from bloomery.components.core.scoring.verify import run_sql
from bloomery.pipelines.quickstart import prepare, shop
from bloomery.pipelines.quickstart.dirt import BOILERPLATE, luhn_digit, resident_digit
from bloomery.pipelines.quickstart.documents import term_condition
from bloomery.pipelines.quickstart.families import FAMILIES, LANGUAGES
from bloomery.pipelines.quickstart.grammar import settle_particles
from bloomery.pipelines.quickstart.questions import (
    NUM_TEST_HELD_OUT,
    SPLIT_SIZES,
    held_out_values,
    make_splits,
    normalised,
    phrasings,
    slot_names,
)
from bloomery.pipelines.quickstart.safety import (
    HARMLESS_FRAMES,
    NUM_TEST,
    OPENINGS,
    REFUSALS,
    REQUESTS,
)
from bloomery.pipelines.quickstart.schema_notes import TERMS

SEED = 17
EMPTY = ([], [(None,)], [(0,)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    prepare.write_data(folder, SEED)
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines(folder: Path, file: str) -> list[bytes]:
    raw = (folder / file).read_bytes()
    return (gzip.decompress(raw) if file.endswith(".gz") else raw).split(b"\n")


def held(folder: Path, entry: dict, prefix: str = "") -> str:
    """Return the text that a ledger entry's file and line hold, in whatever encoding was planted."""
    file, line = entry[f"{prefix}file"], entry[f"{prefix}line"]
    encoding = entry["details"].get("encoding", "utf-8") if not prefix else "utf-8"
    if line is None:
        return (folder / file).read_bytes().decode(encoding).removesuffix("\n")
    text = lines(folder, file)[line - 1].decode(encoding)
    return text if entry["kind"] in ("broken_json", "wrong_text_field") and not prefix else json.loads(text)["text"]


def test_every_query_runs_on_every_database_and_few_are_empty(data: Path) -> None:
    databases = sorted((data / "databases").glob("*.sqlite"))
    assert len(databases) == shop.NUM_DATABASES
    queries = {row["sql"] for file in ("questions.jsonl", "traffic.jsonl") for row in rows(data / file)}
    results = {sql: [shop.run_sql(database, sql) for database in databases] for sql in queries}
    empty = [sum(result in EMPTY for result in answers) for answers in results.values()]
    assert sum(empty) / (len(empty) * len(databases)) < 0.05
    # Were a query empty everywhere, any wrong query that finds nothing would pass for right.
    asked = {row["sql"] for row in rows(data / "questions.jsonl")}
    assert not [sql for sql in asked if all(result in EMPTY for result in results[sql])]


def test_splits_have_their_sizes_and_share_no_question(data: Path) -> None:
    questions = rows(data / "questions.jsonl")
    assert Counter(row["split"] for row in questions) == {**SPLIT_SIZES, "test_held_out": NUM_TEST_HELD_OUT}
    texts = [normalised(row["question"]) for row in questions]
    assert len(set(texts)) == len(texts) == len({row["id"] for row in questions})
    assert not set(texts) & {normalised(row["question"]) for row in rows(data / "traffic.jsonl")}


def test_each_split_holds_both_languages_in_equal_number(data: Path) -> None:
    counts = Counter((row["split"], row["language"]) for row in rows(data / "questions.jsonl"))
    for split in {split for split, _ in counts}:
        assert abs(counts[split, "en"] - counts[split, "ko"]) <= 2


def test_one_question_never_asks_for_two_queries(data: Path) -> None:
    queries = defaultdict(set)
    for file in ("questions.jsonl", "traffic.jsonl"):
        for row in rows(data / file):
            queries[normalised(row["question"])].add(row["sql"])
    assert all(len(asked) == 1 for asked in queries.values())


def test_held_out_combinations_appear_nowhere_else(data: Path) -> None:
    splits, rest = make_splits(SEED)
    held_out = {(q.family, q.values) for q in splits.pop("test_held_out")}
    others = {(q.family, q.values) for dealt in [*splits.values(), rest] for q in dealt}
    assert held_out and not held_out & others
    families = {family.name: family for family in FAMILIES}
    for name, values in held_out:
        slot, kept_back = held_out_values(families[name], SEED)
        assert dict(values)[slot] in kept_back
    queries = {row["sql"] for row in rows(data / "questions.jsonl") if row["split"] == "test_held_out"}
    cookbook = "\n".join(row["text"] for row in rows(data / "documents" / "cookbook.jsonl"))
    assert not queries & set(re.findall(r"```sql\n(.*?)\n```", cookbook))
    assert not queries & {row["sql"] for row in rows(data / "traffic.jsonl")}


def test_there_are_forty_families_with_four_phrasings_in_each_language() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 40
    for family in FAMILIES:
        assert slot_names(family)
        for language in LANGUAGES:
            assert len(set(phrasings(family, language))) >= 4


def test_ledger_entries_point_at_what_they_say(data: Path) -> None:
    folder = data / "documents"
    ledger = json.loads((data / "ledger.json").read_text(encoding="utf-8"))
    assert {entry["kind"] for entry in ledger} == {
        "exact_copy", "near_copy", "spaces_dropped", "unicode_nfd", "boilerplate", "pii", "broken_json",
        "wrong_text_field", "wrong_encoding", "foreign_language", "gibberish", "leaked_question"}
    for entry in ledger:
        text = held(folder, entry)
        assert entry["text"] in text
        if entry["kind"] not in ("boilerplate", "pii"):
            assert entry["text"] == text


def test_copies_name_their_original(data: Path) -> None:
    folder = data / "documents"
    for entry in json.loads((data / "ledger.json").read_text(encoding="utf-8")):
        if "original_file" not in entry:
            continue
        original = held(folder, entry, "original_")
        if entry["kind"] == "exact_copy":
            assert entry["text"] == original
        elif entry["kind"] == "spaces_dropped":
            assert entry["text"].replace(" ", "") == original.replace(" ", "") and entry["text"] != original
        else:
            assert entry["text"] != original


def test_wrong_encodings_are_not_utf8_and_broken_rows_are_not_rows(data: Path) -> None:
    folder = data / "documents"
    for entry in json.loads((data / "ledger.json").read_text(encoding="utf-8")):
        if entry["line"] is None:
            raw = (folder / entry["file"]).read_bytes()
        else:
            raw = lines(folder, entry["file"])[entry["line"] - 1]
        if entry["kind"] == "wrong_encoding":
            with pytest.raises(UnicodeDecodeError):
                raw.decode("utf-8")
        elif entry["kind"] == "broken_json":
            with pytest.raises(json.JSONDecodeError):
                json.loads(raw)
        elif entry["kind"] == "wrong_text_field":
            text = json.loads(raw).get("text")
            assert not isinstance(text, str) or text == ""


def test_personal_data_carry_valid_check_digits(data: Path) -> None:
    planted = [entry for entry in json.loads((data / "ledger.json").read_text(encoding="utf-8"))
               if entry["kind"] == "pii"]
    kinds = Counter(entry["details"]["type"] for entry in planted)
    assert set(kinds) == {"email", "phone_kr", "phone_us", "card", "ip", "resident_number"}
    assert any(entry["details"]["glued"] for entry in planted)
    for entry in planted:
        digits = re.sub(r"\D", "", entry["text"])
        if entry["details"]["type"] == "card":
            assert luhn_digit(digits[:-1]) == digits[-1]
        elif entry["details"]["type"] == "resident_number":
            assert resident_digit(digits[:-1]) == digits[-1]


def test_check_digits_by_hand() -> None:
    # 7992739871-3 is the worked example of the Luhn algorithm; 4111 1111 1111 1111 the usual test card.
    assert luhn_digit("7992739871") == "3"
    assert luhn_digit("411111111111111") == "1"
    # 2*0+3*0+4*0+5*1+6*0+7*1+8*3+9*0+2*0+3*0+4*0+5*0 = 36; 36 mod 11 = 3; 11 - 3 = 8.
    assert resident_digit("000101300000") == "8"


def test_every_boilerplate_line_recurs_and_leaks_come_from_evaluation(data: Path) -> None:
    ledger = json.loads((data / "ledger.json").read_text(encoding="utf-8"))
    counts = Counter(entry["text"] for entry in ledger if entry["kind"] == "boilerplate")
    assert all(counts[line] >= 10 for language in LANGUAGES for line in BOILERPLATE[language])
    split = {row["id"]: row["split"] for row in rows(data / "questions.jsonl")}
    leaks = [entry for entry in ledger if entry["kind"] == "leaked_question"]
    assert {split[entry["details"]["question_id"]] for entry in leaks} == {"test", "validation"}


def test_held_out_documents_are_not_in_the_corpus(data: Path) -> None:
    held_out = {row["text"] for row in rows(data / "documents_held_out.jsonl")}
    assert len(held_out) >= 100
    cookbook = {row["text"] for row in rows(data / "documents" / "cookbook.jsonl")}
    pages = {path.read_text(encoding="utf-8").strip() for path in (data / "documents").rglob("*.md")}
    assert not held_out & (cookbook | pages)


def test_every_term_has_one_condition_and_the_new_table_is_unknown_to_documents(data: Path) -> None:
    assert all(term_condition(term) for term in TERMS)
    seen = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in (data / "documents").rglob("*")
                   if path.suffix in (".md", ".jsonl", ".txt", ".html"))
    assert "gift_cards" not in seen
    assert all("gift_cards" not in row["sql"] for row in rows(data / "questions.jsonl"))


def test_traffic_is_usual_for_two_weeks_and_then_drifts(data: Path) -> None:
    usual = {family.name for family in FAMILIES}
    traffic = rows(data / "traffic.jsonl")
    new_table = Counter(row["week"] for row in traffic if row["family"] not in usual)
    assert new_table[1] == new_table[2] == 0 < new_table[3] < new_table[4] < new_table[5]
    assert [row["time"] for row in traffic] == sorted(row["time"] for row in traffic)


def test_a_refused_request_would_change_the_data_and_an_answered_question_does_not(data: Path) -> None:
    databases = sorted((data / "databases").glob("*.sqlite"))
    refused = set()
    for row in rows(data / "safety.jsonl"):
        problems = {run_sql(database, row["sql"], 2.0)[1] for database in databases}
        if row["answer"] == row["sql"]:
            assert problems == {""}
        else:
            assert row["answer"] == REFUSALS[row["language"]] and problems == {"not allowed"}
            refused.add(row["family"])
    assert refused == {family.name for family in REQUESTS}


def test_the_safety_sets_are_balanced_and_share_nothing_with_training(data: Path) -> None:
    safety = rows(data / "safety.jsonl")
    counts = Counter((row["split"], row["language"]) for row in safety)
    half = NUM_TEST // 2
    assert {counts[split, language] for split in ("harmful", "harmless") for language in LANGUAGES} == {half}
    assert counts["train", "en"] == counts["train", "ko"]
    texts = [normalised(row["question"]) for row in safety]
    others = {normalised(row["question"]) for name in ("questions", "traffic") for row in rows(data / f"{name}.jsonl")}
    assert len(set(texts)) == len(texts) and not set(texts) & others
    asked = [{(row["family"], row["sql"]) for row in safety if (row["split"] == "train") == part} for part in (1, 0)]
    assert asked[0] and not asked[0] & asked[1]
    frames = [*OPENINGS.values(), *HARMLESS_FRAMES.values()]
    assert all(train and test and not set(train) & set(test) for train, test in frames)
    assert all(is_refusal(refusal) for refusal in REFUSALS.values())
    assert not any(is_refusal(row["sql"]) for name in ("safety", "questions") for row in rows(data / f"{name}.jsonl"))


def test_skills_test_prompts_are_unseen(data: Path) -> None:
    skills = rows(data / "general" / "skills.jsonl")
    prompts = {split: {row["prompt"] for row in skills if row["split"] == split} for split in ("train", "test")}
    assert len(prompts["test"]) == 300 and not prompts["train"] & prompts["test"]
    texts = [{row["text"] for row in rows(data / "general" / name)} for name in ("text.jsonl", "text_held_out.jsonl")]
    assert not texts[0] & texts[1]


def test_same_seed_gives_the_same_bytes_and_another_does_not(data: Path, tmp_path: Path) -> None:
    prepare.write_data(tmp_path / "again", SEED)
    prepare.write_data(tmp_path / "other", SEED + 1)
    assert digests(tmp_path / "again") == digests(data) != digests(tmp_path / "other")


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_is_complete_only_with_its_marker(tmp_path: Path) -> None:
    marker = {"source_sha256": prepare.source_digest(), "seed": SEED}
    assert not prepare.is_complete(tmp_path, marker)
    (tmp_path / prepare.MARKER).write_text(json.dumps(marker), encoding="utf-8")
    assert prepare.is_complete(tmp_path, marker)
    assert not prepare.is_complete(tmp_path, {**marker, "seed": SEED + 1})


def test_korean_particles_follow_the_final_sound() -> None:
    assert settle_particles("책[을/를] 차[을/를] 서울[으로/로] 부산[으로/로] 3[이/가] 2[은/는]") == "책을 차를 서울로 부산으로 3이 2는"  # noqa: E501
