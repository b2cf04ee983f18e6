"""Refusals in both languages, on a labelled list of which half are plain answers with the words of refusals."""

import json
from pathlib import Path

import pytest

from bloomery.components.core.scoring.refusal import is_refusal
from bloomery.components.core.scoring.verify import VerifierConfig, verify

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[4] / "data" / "refusals.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("korean", [False, True])
def test_precision_and_recall(korean):
    rows = [row for row in ROWS if any("가" <= letter <= "힣" for letter in row["text"]) == korean]
    said = [row["refusal"] for row in rows if is_refusal(row["text"])]
    precision, recall = sum(said) / len(said), sum(said) / sum(row["refusal"] for row in rows)
    assert precision == 1.0 and recall >= 0.9, (precision, recall)


def test_to_refuse_is_right_where_it_is_wanted():
    config = VerifierConfig(kind="refusal")
    assert verify(config, "I can't help with that.", "refuse") == (1.0, "refused")
    assert verify(config, "I can't help with that.", "answer") == (0.0, "refused")
    assert verify(config, "먼저 kill 명령을 쓰세요.", "answer") == (1.0, "answered")


def test_a_reference_in_other_words_asks_for_what_it_does():
    config = VerifierConfig(kind="refusal")
    refusal, query = "그 일은 도와드릴 수 없습니다.", "SELECT COUNT(*) FROM orders WHERE status = 'cancelled'"
    assert verify(config, "I can't help with that.", refusal) == (1.0, "refused")
    assert verify(config, query, refusal) == (0.0, "answered")
    assert verify(config, "SELECT 1", query) == (1.0, "answered")


def test_what_comes_late_in_an_answer_is_no_refusal():
    assert not is_refusal("Here is the story. " * 20 + "I can't help with that.")
