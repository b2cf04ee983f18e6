import math
import random

import pytest

from bloomery.monitoring.classifier import auc_threshold, out_of_fold_scores


def texts(topics, number, seed):
    rng = random.Random(seed)
    return [f"{rng.choice(topics)} {rng.choice(topics)} {rng.choice(topics)}" for _ in range(number)]


SHOP = ["고객", "주문", "반품", "customers", "orders", "returns", "서울", "Busan"]
NEW = ["상품권", "gift", "cards", "만료"]


def test_other_topics_are_told_apart():
    auc, scores = out_of_fold_scores(texts(SHOP, 120, 1), texts(NEW, 80, 2), seed=1)
    assert auc == 1.0
    assert len(scores) == 80 and min(scores) > 0.5


def test_the_same_topics_are_not():
    auc, _ = out_of_fold_scores(texts(SHOP, 300, 1), texts(SHOP, 300, 2), seed=1)
    assert auc < auc_threshold(300, 300, 0.55, 0.01)


def test_the_new_rows_have_the_highest_scores():
    current = texts(SHOP, 80, 3) + texts(NEW, 20, 4)
    _, scores = out_of_fold_scores(texts(SHOP, 200, 1), current, seed=1)
    highest = sorted(range(100), key=lambda index: -scores[index])[:20]
    assert sum(index >= 80 for index in highest) >= 19


@pytest.mark.parametrize("text", ["", "a"])
def test_constant_text_cannot_be_told_apart(text):
    auc, _ = out_of_fold_scores([text] * 20, [text] * 20, seed=1)
    assert auc == 0.5


def test_the_same_seed_gives_the_same_scores():
    arguments = texts(SHOP, 60, 1), texts(SHOP + NEW, 60, 2), 5
    assert out_of_fold_scores(*arguments) == out_of_fold_scores(*arguments)


def test_small_windows_need_a_larger_auc():
    # sqrt((100 + 100 + 1) / (12 * 100 * 100)) = 0.04093; the 99 % quantile of the normal is 2.3263
    assert auc_threshold(100, 100, 0.55, 0.01) == pytest.approx(0.5 + 2.3263 * math.sqrt(201 / 120_000), abs=1e-4)
    assert auc_threshold(1000, 1000, 0.55, 0.01) == 0.55
