"""The learned quality score: features by hand, training on made texts, what is refused."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
from pydantic import ValidationError

from bloomery.components.core.errors import DataError
from bloomery.components.data_curation.learned import LearnedQualityConfig, feature_counts, score, train

NOUNS = "주문 상품 고객 배송 결제 반품 창고 회원 order parcel customer refund payment invoice".split()


def examples(style: str, number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [style.format(*draw.sample(NOUNS, 3), draw.randrange(10**6)) for _ in range(number)]


GOOD = examples("{0} 표에는 {1} 열이 있습니다. The {2} is written down on the day it arrives ({3}).", 60, 1)
BAD = examples("{0} ㅋㅋ {1} 대박임 ㅠ omg {2} lol click here!! {3}", 60, 2)


def test_words_pairs_and_ngrams_are_counted() -> None:
    counts = feature_counts(["ab ab", "", "ab"])
    half = counts.shape[1] // 2
    words, characters = counts[:, :half].toarray(), counts[:, half:].toarray()
    # "ab" twice; the pairs (start, ab) and (ab, ab); of "ab ab" three 3-grams, two 4-grams and one 5-gram.
    assert sorted(words[0][words[0] > 0]) == [1, 1, 2] and characters[0].sum() == 6
    assert counts[1].nnz == 0
    assert sorted(words[2][words[2] > 0]) == [1, 1] and characters[2].sum() == 0
    assert np.array_equal(feature_counts(["x", "ab ab"])[1].toarray(), counts[0].toarray())


def test_unseen_texts_are_told_apart_and_the_scores_say_so() -> None:
    model = train(GOOD, BAD, folds=5, seed=0)
    unseen = examples("{0} 표에는 {1} 열이 있습니다. The {2} arrives ({3}).", 5, 3)
    assert (score(model, unseen) > 0.5).all() and (score(model, examples("{0} ㅋㅋ {1} {2} lol {3}", 5, 4)) < 0.5).all()
    assert set(model.scores) == {"roc_auc", "average_precision", "balanced_accuracy", "brier"}
    assert model.scores["roc_auc"] == (1.0, 0.0) and model.scores["brier"][0] < 0.05


def test_a_model_that_can_learn_nothing_says_so() -> None:
    good = examples("{0} {1} {2} {3}", 100, 5)
    model = train(good, examples("{0} {1} {2} {3}", 100, 6), folds=5, seed=0)
    mean, stderr = model.scores["roc_auc"]
    assert abs(mean - 0.5) < 4 * stderr + 0.05 and model.scores["brier"][0] > 0.2


def test_half_is_the_border_however_few_the_good_are() -> None:
    model = train(GOOD[:12], BAD, folds=3, seed=0)
    assert (score(model, GOOD[12:]) > 0.5).all()


def test_same_examples_and_seed_give_the_same_scores() -> None:
    first, second = (train(GOOD, BAD, folds=3, seed=7) for _ in range(2))
    texts = GOOD[:3] + BAD[:3] + ["", "   ", "\ud800 lone"]
    assert score(first, texts).tobytes() == score(second, texts).tobytes()
    assert score(pickle.loads(pickle.dumps(first)), texts).tobytes() == score(first, texts).tobytes()
    assert first.scores == second.scores
    assert score(first, []).shape == (0,)
    assert score(first, texts[:1])[0] == score(first, texts)[0]


def test_too_few_different_examples_are_refused() -> None:
    with pytest.raises(DataError, match="1 different good examples, expected at least `folds` = 5"):
        train(["same text", "Same  text", " "], BAD, folds=5, seed=0)


def test_a_text_in_both_classes_is_refused() -> None:
    with pytest.raises(DataError, match="1 texts are both good and bad"):
        train(GOOD, [*BAD, GOOD[0].upper()], folds=5, seed=0)


def test_settings_have_their_ranges() -> None:
    sides = {"good": {"name": "good", "path": "g.jsonl"}, "bad": {"name": "bad", "path": "b.jsonl"}}
    assert LearnedQualityConfig(**sides).min_score == 0.5
    for wrong in ({"min_score": 1.1}, {"folds": 1}):
        with pytest.raises(ValidationError):
            LearnedQualityConfig(**sides, **wrong)
