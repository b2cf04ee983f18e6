"""Each rule by hand; the words of the web filters; the sets together on real pages."""

from __future__ import annotations

import json
import lzma
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bloomery.components.data_curation import clean, language, quality, quality_prose, quality_text, quality_web
from bloomery.components.data_curation.quality_words import english_words, short_forms

ENGLISH = "The customers table holds one row for each customer, and the column joined is the day of the first order."
KOREAN = "고객 표에는 손님마다 한 줄이 있고 가입 열은 처음 주문한 날이다. 주문 표에는 주문마다 한 줄이 있다."


def judge(text: str, *rule_sets: str, code: str = "en", min_words: int = 0) -> quality.Verdict:
    (verdict,) = quality.judge(pa.array([text]), [code], rule_sets, min_words, 100_000)
    return verdict


def measured(text: str, name: str) -> float:
    return float(quality.measure(pa.array([text]), {name})[name][0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENGLISH, ""),
        (KOREAN, ""),
        ("Too few words", "too_short"),
        ("# | @ $ % ^ & * ( ) ~ ! word", "symbols"),
        ("ㅋㅋㅋㅋ ㅎㅎㅎ ㅠㅠㅠ ㅋㅋ ㅋㅋㅋ ㅎㅎ", "jamo"),
        ("asdf hjkl qwer zxcv " * 6, "no_function_words"),
        ("buy now the best " * 10, "repeated_words"),
        ("\n".join(["This line of the page is here again"] * 6), "repeated_lines"),
        ("Page \ufffd\ufffd of the \ufffd book is here", "unreadable_characters"),
    ],
)
def test_domain(text, reason):
    code = "ko" if language.detect(text, 0.5) == "ko" else "en"
    assert judge(text, "domain", code=code, min_words=5).reason == reason


MOJIBAKE = KOREAN.encode().decode("cp949", "replace").replace("\ufffd", "?")
NOUNS = "고객 주문 상품 창고 배송 결제 점포 직원 재고 환불 쿠폰 계정 주소 포장 반품"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KOREAN, ""),
        (MOJIBAKE, "ko_rare_syllables"),
        (KOREAN.replace("표", "ㅁㄴㅇㄹ ㅎㅗㅓㅏ"), "ko_jamo_runs"),
        (NOUNS, "ko_particles"),
        (" ".join(KOREAN.replace(" ", "")), "ko_word_length"),
        (KOREAN.replace(" ", "", 12), "ko_spacing"),
        (KOREAN.replace("고객", "顧客").replace("한 줄", "一行在此處記載").replace("주문", "注文"), "ko_syllables"),
    ],
)
def test_korean(text, reason):
    verdict = judge(text, "korean", code="ko")
    assert reason in verdict.broken if reason else verdict == ("", "", ())
    assert judge(text, "korean", code="en").reason == ""


def test_a_verdict_names_every_reason():
    verdict = judge("ㅋㅋㅋㅋ ㅎㅎㅎ # ㅠㅠㅠ", "domain", "korean", code="ko", min_words=5)
    assert verdict == ("too_short", "num_words=4", ("too_short", "jamo", "ko_jamo_runs"))
    assert judge("one two " * 8, "domain").detail == "top_2gram_share=1"


def tokens(text: str) -> list[str]:
    codes = np.array([ord(letter) for letter in text], np.uint32)
    count = len(codes)
    prefixes = np.empty(count + 1, np.uint64)
    quality_text.hash_prefixes(codes, count, prefixes)
    starts, ends, stack = (np.empty(count, np.int64) for _ in range(3))
    powers, kinds = quality_text.make_powers(count), quality_text.character_kinds()
    words = english_words(codes, count, prefixes, powers, kinds, short_forms(), starts, ends, stack)
    return [text[starts[word] : ends[word]] for word in range(words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He can't, she's (not) here...", "He ca n't , she 's ( not ) here ..."),
        ('"Quoted," said Mr. Smith; etc.', '" Quoted , " said Mr. Smith ; etc .'),
        ("well-known and/or new/old x=y 3-4 a--b", "well - known and/or new / old x = y 3 - 4 a -- b"),
        ("https://a.example.org/b-c/d and file.txt", "https://a.example.org/b-c/d and file.txt"),
        ("cost $5.50, 10km or 20% at 9am", "cost $ 5.50 , 10 km or 20 % at 9 am"),
        ("U.S. law in the USA. End.Start", "U.S. law in the USA . End . Start"),
        ("I'm we'll've cannot gonna its don’t", "I 'm we 'll 've can not gon na its do n’t"),
        ("{key: [value]} --flag **bold**", "{ key : [ value ] } --flag * * bold * *"),
    ],
)
def test_english_words(text, expected):
    assert tokens(text) == expected.split()


def test_gopher():
    text = "The cat and the dog have sat with it.\n" * 6
    assert measured(text, "num_gopher_words") == 54  # nine a line; the full stops do not count
    assert measured(text, "gopher_mean_word_length") == pytest.approx(28 / 9)
    assert measured(text, "gopher_alphabetic_word_share") == pytest.approx(54 / 60)
    assert measured(text, "num_gopher_stop_words") == 4  # and, the, have, with
    assert judge(text, "gopher").reason == ""


def test_rules_of_english_web_pages_judge_english_only():
    sets = ("gopher", "gopher_repetition", "c4", "c4_any_line", "fineweb")
    assert judge(KOREAN, *sets, code="ko") == ("", "", ()) and judge(KOREAN, *sets, code="en").reason


def test_gopher_stop_words_are_different_ones_in_lower_case():
    assert measured("the the and The With", "num_gopher_stop_words") == 2


def test_repetition():
    text = "one two three\n\nfour five six\n\none two three"
    assert measured(text, "duplicate_paragraph_share") == pytest.approx(1 / 3)
    assert measured(text, "duplicate_line_character_share") == pytest.approx(13 / len(text))
    # `one two` stands twice and first: 2 · 7 characters.
    assert measured(text, "gopher_top_2gram_share") == pytest.approx(14 / len(text))
    words = "a b c d e f g"
    again = f"{words} x {words}"
    # `a b c d e` stands again, and after it two words are left: 5 characters without the spaces.
    assert measured(again, "duplicate_5gram_share") == pytest.approx(5 / len(again))
    assert measured(again, "duplicate_8gram_share") == 0
    assert judge(again, "gopher_repetition").broken == ("top_ngrams", "duplicate_ngrams")


def test_c4():
    good = "One line of text ends here.\n" * 5
    assert judge(good, "c4") == ("", "", ())
    assert judge(good + "A {bracket} in a line.", "c4").reason == "c4_curly_brackets"
    assert judge(good + "Lorem Ipsum dolor sit amet.", "c4").reason == "c4_lorem_ipsum"
    assert judge(good + "{ too short", "c4").reason == ""
    assert judge(good + "A {bracket} beside JavaScript is dropped first.", "c4").reason == ""
    assert judge(good + "A {bracket} beside our privacy policy.", "c4").reason == "c4_curly_brackets"
    assert judge(good.replace("here.", "here..."), "c4").reason == "c4_sentences"
    assert judge(good.replace("here.", "here"), "c4").reason == "c4_sentences"
    assert judge(good.replace("here.", "here"), "c4_any_line").reason == ""
    assert measured(good.replace("here.", "here.[12]"), "num_c4_sentences") == 5
    assert measured(good + "We need JavaScript for this.", "num_c4_sentences") == 5
    assert measured("He came. She left? Yes! And then.", "num_c4_sentences") == 4


def test_fineweb():
    lines = "A line that is long enough to count here.\nshort one\nAnother line that is long enough to count.\n"
    assert measured(lines, "terminated_line_share") == pytest.approx(2 / 3)
    assert measured(lines, "short_line_share") == pytest.approx(1 / 3)
    assert measured(lines, "newline_word_ratio") == pytest.approx(3 / 21)
    assert judge(lines, "fineweb").reason == ""
    assert judge(lines + lines[:42], "fineweb").reason == "fineweb_duplicate_lines"


def test_measures_are_the_same_in_a_batch_as_alone():
    texts = [
        ENGLISH,
        "",
        KOREAN,
        "one two one two one two one two",
        "x",
        "...",
        "\n\n",
        "e\u0301 \U0001f600 \U0010ffff",
    ]
    names = {*quality_prose.MEASURES, *quality_web.MEASURES}
    together = quality.measure(pa.array([*texts, "another"]).slice(0, len(texts)), names)
    for index, text in enumerate(texts):
        alone = quality.measure(pa.array([text]), names)
        assert {name: values[0] for name, values in alone.items()} == {
            name: values[index] for name, values in together.items()
        }
    # "one two" stands four times in eight words of three letters: 4 · 6 of 24 characters.
    assert together["top_2gram_share"][3] == pytest.approx(1.0)
    later = quality.measure(pa.array(texts).slice(2, 1), names)
    assert later["num_words"] == together["num_words"][2]


def test_threads_judge_side_by_side():
    texts = pa.array([ENGLISH * repeat for repeat in range(1, 60)] + [KOREAN, ""])
    codes = ["en"] * len(texts)

    def verdicts(_: int) -> list[quality.Verdict]:
        return quality.judge(texts, codes, tuple(quality.RULE_SETS), 5, 100)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(verdicts, range(8))
    assert all(other == first for other in others)


def test_a_rule_names_a_measure():
    for rules in quality.RULE_SETS.values():
        for rule in rules:
            assert rule.value in (*quality_prose.MEASURES, *quality_web.MEASURES)


@pytest.mark.parametrize(("name", "wanted"), [("vs_docs_ko/ko.jsonl.xz", 0.95), ("web_docs_ko/en.jsonl.xz", 0.97)])
def test_real_pages_written_by_people_are_kept(name, wanted):
    data = os.environ.get("BLOOMERY_DATA")
    if not data or not (Path(data) / name).is_file():
        pytest.skip("BLOOMERY_DATA does not hold the Korean and English pages")
    with lzma.open(Path(data) / name, "rt", encoding="utf-8", newline="\n") as stream:
        cleaned = [clean.clean(json.loads(line)["text"]) for line, _ in zip(stream, range(300), strict=False)]
    texts = [text for text in cleaned if len(text.split()) >= 30]
    codes = [language.detect(text, 0.5) for text in texts]
    judged = quality.judge(pa.array(texts), codes, ("domain", "korean"), 5, 100_000)
    assert sum(not verdict.reason for verdict in judged) / len(judged) >= wanted
