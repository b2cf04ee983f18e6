import unicodedata

import pytest

from bloomery.monitoring.descriptors import Vocabulary, describe, pieces, words


def test_describe_english():
    found = describe("Top 5, now?")
    assert found == {
        "characters": 11,
        "words": 3,
        "hangul_share": 0.0,
        "digit_share": pytest.approx(1 / 9),
        "punctuation_share": pytest.approx(2 / 9),
    }


def test_describe_korean():
    found = describe("서울 고객 3명")  # 서울고객명 of 서울고객3명
    assert found["words"] == 3
    assert found["hangul_share"] == pytest.approx(5 / 6)
    assert found["digit_share"] == pytest.approx(1 / 6)


def test_decomposed_hangul_is_the_same_text():
    text = "상품권 총액"
    assert describe(unicodedata.normalize("NFD", text)) == describe(text)
    assert words(unicodedata.normalize("NFD", text)) == ["상품권", "총액"]


def test_an_empty_text_has_no_shares():
    assert set(describe("").values()) == {0}


def test_pieces():
    assert pieces("2025") == ["0000"]
    assert pieces("상품권") == ["상품", "품권"]
    assert pieces("gift") == ["gift"]
    assert pieces("총") == ["총"]


def test_novelty_of_the_reference_leaves_out_the_text_itself():
    texts = ["gold customers", "silver customers"]
    vocabulary = Vocabulary(texts)
    assert vocabulary.novelty("gold customers", is_own=True) == 0.5  # no other text has "gold"
    assert vocabulary.novelty("gold customers") == 0.0
    assert vocabulary.novelty("gift customers") == 0.5
    assert vocabulary.novelty("") == 0.0


def test_a_particle_alone_is_little_novelty():
    vocabulary = Vocabulary(["상품권을 산 고객", "고객의 주문"])
    assert vocabulary.novelty("상품권이") == pytest.approx(1 / 3)  # 상품 품권 known, 권이 new
    assert vocabulary.novel_words("상품권이 산 Gift gift") == ["상품권이", "gift"]
