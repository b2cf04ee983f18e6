"""Text metrics against values worked out by hand, and in Korean."""

import pytest

from bloomery.components.core.data.text_metrics import corpus_score, longest_common_subsequence, sentence_score, tokens
from bloomery.components.core.scoring.verify import VerifierConfig, verify


def test_tokens_keep_every_script():
    assert tokens("The CAT's 2") == ["the", "cat", "s", "2"]
    assert tokens("서울에 3명!") == ["서", "울", "에", "3", "명"]
    assert tokens("\u1109\u1165") == tokens("서")  # decomposed Hangul is the same text


@pytest.mark.parametrize(
    ("a", "b", "length"), [("abcde", "ace", 3), ("abc", "xyz", 0), ("", "a", 0), ("aab", "aba", 2), ("abc", "abc", 3)]
)
def test_longest_common_subsequence(a, b, length):
    assert longest_common_subsequence(a, b) == longest_common_subsequence(b, a) == length


def test_rouge_by_hand():
    # the cat sat / the cat lay down: shared words 2 of 3 and 4, pairs 1 of 2 and 3
    score = {kind: sentence_score(kind, "the cat sat", "the cat lay down", "intl") for kind in ("rouge_1", "rouge_2")}
    assert score == pytest.approx({"rouge_1": 4 / 7, "rouge_2": 2 / 5})
    # cat the down: in order, only one of `the` and `cat`, then `down`
    assert sentence_score("rouge_l", "cat the down", "the cat lay down", "intl") == pytest.approx(4 / 7)


def test_chrf_by_hand():
    # abc against abd: orders 1, 2 match 2 of 3 and 1 of 2, order 3 none of 1: mean precision = recall = 7/18
    assert sentence_score("chrf", "abc", "abd", "intl") == pytest.approx(7 / 18)


@pytest.mark.parametrize("kind", ["chrf", "bleu", "rouge_1", "rouge_2", "rouge_l"])
def test_korean_counts(kind):
    reference = "서울에 사는 고객은 모두 세 명입니다"
    near, far = "서울에 사는 고객은 모두 네 명입니다", "어제 부산에서 비가 많이 내렸다"
    scores = [sentence_score(kind, text, reference, "char") for text in (reference, near, far, "")]
    assert scores[0] == 1.0 > scores[1] > 0.5 > scores[2] >= scores[3] == 0.0


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "char"])
def test_no_tokenizer_of_bleu_drops_korean(tokenizer):
    assert sentence_score("bleu", "부산 고객", "서울 회원", tokenizer) < sentence_score(
        "bleu", "서울 고객", "서울 회원", tokenizer
    )


def test_a_corpus_score_is_no_mean():
    # BLEU-char adds counts up: the long right answer outweighs the short wrong one
    answers, references = ["x", "the cat sat on the mat"], ["y", "the cat sat on the mat"]
    mean = sum(sentence_score("bleu", a, r, "char") for a, r in zip(answers, references, strict=True)) / 2
    assert corpus_score("bleu", answers, references, "char") > 0.9 > mean


def test_a_verifier_says_what_its_score_is():
    assert verify(VerifierConfig(kind="rouge_l"), "가 나", "가 다") == (0.5, "rouge_l 0.500")
    metrics = {kind: VerifierConfig(kind=kind).metric for kind in ("exact", "refusal", "chrf", "perplexity")}
    assert metrics == {"exact": "accuracy", "refusal": "accuracy", "chrf": "chrf", "perplexity": "log_likelihood"}
