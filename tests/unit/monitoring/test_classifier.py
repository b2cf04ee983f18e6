import math
import random

import numpy as np
import pytest

from bloomery.monitoring.classifier import OVERDISPERSION, compare_texts, compare_vectors, distance, top_threshold


def texts(topics, number, seed):
    rng = random.Random(seed)
    return [f"{rng.choice(topics)} {rng.choice(topics)} {rng.choice(topics)}" for _ in range(number)]


SHOP = ["고객", "주문", "반품", "customers", "orders", "returns", "서울", "Busan"]
NEW = ["상품권", "gift", "cards", "만료"]


def test_other_topics_are_told_apart():
    found = compare_texts(texts(SHOP, 120, 1), texts(NEW, 80, 2), 1)
    assert found.top_share == 1.0 and found.effect == 1.0
    assert len(found.reference) == 120 and len(found.current) == 80 and min(found.current) > max(found.reference)


def test_the_same_topics_are_not():
    found = compare_texts(texts(SHOP, 300, 1), texts(SHOP, 300, 2), 1)
    assert found.top_share < top_threshold(300, 300, 0.01)


def test_the_new_rows_have_the_highest_scores():
    current = texts(SHOP, 80, 3) + texts(NEW, 20, 4)
    found = compare_texts(texts(SHOP, 200, 1), current, 1, others=["상품권 gift cards", "고객 주문 반품"])
    highest = sorted(range(100), key=lambda index: -found.current[index])[:20]
    assert sum(index >= 80 for index in highest) >= 19
    assert found.others[0] > 0.5 > found.others[1]


@pytest.mark.parametrize("text", ["", "a", "고객의 주문"])
def test_constant_text_cannot_be_told_apart(text):
    found = compare_texts([text] * 200, [text] * 200, 1)
    assert found.effect == 0.0 and found.top_share < top_threshold(200, 200, 0.01)


def test_the_same_seed_gives_the_same_scores():
    arguments = texts(SHOP, 60, 1), texts(SHOP + NEW, 60, 2), 5
    assert compare_texts(*arguments) == compare_texts(*arguments)


def test_vectors():
    rng = np.random.default_rng(1)
    same = compare_vectors(rng.normal(size=(200, 80)), rng.normal(size=(200, 80)), 1)
    assert same.top_share < top_threshold(200, 200, 0.01)
    moved = rng.normal(size=(200, 80))
    moved[:60, :5] += 4
    found = compare_vectors(rng.normal(size=(200, 80)), moved, 1)
    assert found.top_share > top_threshold(200, 200, 0.0001) and found.effect > 0.15


def test_the_threshold_is_a_quantile_of_a_draw_without_replacement():
    # 40 of 400, half of them current: variance 0.25 / 40 * 360 / 399; the 99 % quantile of the normal is 2.3263
    stderr = math.sqrt(0.25 / 40 * 360 / 399)
    assert top_threshold(200, 200, 0.01) == pytest.approx(0.5 + 2.3263 * OVERDISPERSION * stderr, abs=1e-4)


def test_distance_by_hand():
    # below 1: 1/4 and 0; up to 2: 3/4 and 1/4
    assert distance([1, 2, 2, 3], [2, 3, 3, 4]) == pytest.approx(0.5)
    assert distance([1, 2, 2, 3], [2, 3, 3, 4], one_sided=True) == pytest.approx(0.5)
    assert distance([2, 3, 3, 4], [1, 2, 2, 3], one_sided=True) == 0.0
    assert distance([0, 0, 0, 1], [0, 1, 1, 1]) == pytest.approx(0.5)
