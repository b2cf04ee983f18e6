"""The coverage report: counts by hand, and topics that neither order nor batches change."""

from __future__ import annotations

import pickle
import random

import pytest
from pydantic import ValidationError

from bloomery.components.core.records import Coverage
from bloomery.components.data_curation import coverage
from bloomery.components.data_curation.coverage import CoverageCounter, WantedSlice, length_bucket, topic_words

WANTED = [
    WantedSlice(name="refunds_ko", language="ko", pattern="환불|반품", documents=2),
    WantedSlice(name="wiki", source="wiki", documents=1),
]
SUBJECTS = {
    "ko": (
        "반품을 환불은 택배로 상자의 송장을 수거는 기사가".split(),
        "회원의 등급은 포인트를 적립이 혜택을 생일에 할인은".split(),
    ),
    "en": (
        "invoice payment bank transfer card balance debit".split(),
        "harbour ship sailor anchor voyage captain deck".split(),
    ),
}
STEMS = ["반품 환불 택배 상자 송장 수거 기사".split(), "회원 등급 포인트 적립 혜택 생일 할인".split(), *SUBJECTS["en"]]


def corpus(number: int) -> tuple[list[str], list[str], list[str]]:
    """Four subjects, two in each language, in equal parts."""
    draw = random.Random(0)
    texts, languages = [], []
    for index in range(number):
        language = ("ko", "en")[index % 2]
        texts.append(f"{' '.join(draw.sample(SUBJECTS[language][index // 2 % 2], 3))} {index}")
        languages.append(language)
    return texts, languages, [("wiki", "notes")[index % 3 == 0] for index in range(number)]


def counted(texts: list[str], languages: list[str], sources: list[str]) -> CoverageCounter:
    counter = CoverageCounter(WANTED)
    counter.add(texts, languages, sources)
    return counter


def test_documents_and_words_are_counted_by_slice() -> None:
    rows = counted(["환불 규정 하나", "one", "배송 안내"], ["ko", "en", "ko"], ["notes", "wiki", "notes"]).rows(8, 0)
    assert [tuple(row.values()) for row in rows] == [
        ("language", "ko", 2, 5, 0),
        ("language", "en", 1, 1, 0),
        ("source", "notes", 2, 5, 0),
        ("source", "wiki", 1, 1, 0),
        ("length", "1", 1, 1, 0),
        ("length", "2-3", 2, 5, 0),
        ("wanted", "refunds_ko", 1, 3, 2),
        ("wanted", "wiki", 1, 1, 1),
    ]
    assert Coverage.table(rows).num_rows == len(rows)


def test_a_wanted_slice_that_nothing_meets_is_reported() -> None:
    rows = CoverageCounter(WANTED).rows(8, 0)
    assert [(row["slice"], row["documents"], row["wanted"]) for row in rows] == [("refunds_ko", 0, 2), ("wiki", 0, 1)]


def test_lengths_fall_into_powers_of_two() -> None:
    found = [length_bucket(n) for n in (0, 1, 2, 3, 4, 255, 256)]
    assert found == ["0", "1", "2-3", "2-3", "4-7", "128-255", "256-511"]


def test_particles_and_endings_are_no_part_of_a_word() -> None:
    words = topic_words("주문을 주문은 주문에서는 주문합니다 API를 The orders, 2024 a")
    assert words == [*["주문"] * 4, "api", "orders"]
    assert topic_words("도로 있는 그리고") == ["도로"]


def test_topics_find_the_subjects() -> None:
    topics = [row for row in counted(*corpus(400)).rows(4, 0) if row["dimension"] == "topic"]
    assert [row["documents"] for row in topics] == [100] * 4
    names = [set(row["slice"].split(", ")) for row in topics]
    assert all(any(name <= set(subject) for name in names) for subject in STEMS)


def test_neither_order_nor_batches_nor_workers_change_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_SAMPLE", 60)
    texts, languages, sources = corpus(400)
    texts[7::40] = [texts[7]] * len(texts[7::40])  # copies: one text of the sample, counted whole
    whole = counted(texts, languages, sources).rows(3, 0)
    order = random.Random(1).sample(range(400), 400)
    merged = CoverageCounter(WANTED)
    for start in range(0, 400, 37):
        part = [[column[i] for i in order[start : start + 37]] for column in (texts, languages, sources)]
        merged.merge(pickle.loads(pickle.dumps(counted(*part))))
    assert merged.rows(3, 0) == whole
    topics = [row for row in whole if row["dimension"] == "topic"]
    assert sum(row["documents"] for row in topics) == 400
    assert sum(row["words"] for row in topics) == sum(len(text.split()) for text in texts)


def test_a_small_corpus_has_fewer_topics() -> None:
    def num_topics(number: int, wanted: int) -> int:
        return sum(row["dimension"] == "topic" for row in counted(*corpus(number)).rows(wanted, 0))

    assert (num_topics(19, 8), num_topics(45, 8), num_topics(400, 0)) == (0, 2, 0)


def test_texts_without_common_words_are_no_topic() -> None:
    texts = [f"w{index}x" for index in range(50)]
    rows = counted(texts, ["und"] * 50, ["notes"] * 50).rows(4, 0)
    assert [(row["slice"], row["documents"]) for row in rows if row["dimension"] == "topic"] == [
        (coverage.OTHER_TOPIC, 50)
    ]


def test_code_addresses_and_masks_are_not_sampled() -> None:
    prose = coverage._prose("주문 `SELECT x` https://a.example/b [안내](c.html) [EMAIL] <b>굵게</b>\n```\nx\n```\n끝")
    assert prose.split() == ["주문", "[안내", "굵게", "끝"]


@pytest.mark.parametrize("wrong", [{}, {"pattern": "("}, {"language": "korean"}, {"language": "ko", "documents": 0}])
def test_a_wanted_slice_needs_a_condition_that_can_hold(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        WantedSlice(**{"name": "x", "documents": 1, **wrong})
