"""The search alone, in a toy whose best sub-network is known."""

import random

import pytest

from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError
from bloomery.components.nas.config import NasConfig
from bloomery.components.nas.search import Candidate, Space, changed, front, search

SPACE = Space(whole=6, depths=[3, 4, 5], groups=[1, 2], channels=[4, 8])
WORTH = [5, 0, 4, 3, 1, 2]
"""Of each layer; importance, which is asked first, takes the first layers for the best."""


def size(one):
    return len(one.layers) * (2 * one.groups + one.channels)


def go(limit, generations=8, seed=1):
    asked = []

    def judge(one):
        asked.append(one)
        return sum(WORTH[layer] for layer in one.layers) + one.groups + one.channels / 4

    options = {"population": 12, "generations": generations, "seed": seed}
    found = search(SPACE, range, judge, lambda one: size(one) <= limit, lambda worth: (worth,), **options)
    assert list(found) == asked and len(set(asked)) == len(asked) <= 12 * (generations + 1)
    assert all(size(one) <= limit for one in asked)
    return max(found, key=found.__getitem__), found


def test_the_best_sub_network_under_the_limit_is_found():
    best, found = go(limit=32)
    # By hand: five layers cost 5 x 6 = 30 with one group and 4 channels and are worth 15 + 1 + 1, without layer 1; four
    # layers with two groups cost 32 and are worth 14 + 2 + 1: as much; three layers less.
    assert found[best] == 17 and 1 not in best.layers
    assert go(limit=32)[1] == found and list(go(limit=32, seed=2)[1]) != list(found)
    assert go(limit=1000)[0] == Candidate((0, 2, 3, 4, 5), 2, 8)


def test_without_generations_the_shapes_themselves_are_judged():
    best, found = go(limit=40, generations=0)
    assert len(found) <= 12 and Candidate((0, 1, 2), 1, 4) in found


def test_a_change_stays_in_the_space():
    chance = random.Random(0)
    one, seen = Candidate((0, 1, 2), 1, 4), set()
    for _ in range(300):
        one = changed(SPACE, one, chance)
        seen.add((len(one.layers), one.groups, one.channels))
        assert list(one.layers) == sorted(set(one.layers)) and set(one.layers) <= set(range(6))
    assert seen == set(SPACE.shapes())
    only = Space(whole=2, depths=[2], groups=[1], channels=[4])
    assert changed(only, Candidate((0, 1), 1, 4), chance) == Candidate((0, 1), 1, 4)


def test_the_front_holds_what_none_beats():
    assert front([(1, (0.5,)), (2, (0.5,)), (2, (0.7,)), (1, (0.5,)), (3, (0.6,))]) == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_bytes": 9}, "expected numbers to choose from: num_hidden_layers, num_key_value_heads"),
        ({"num_hidden_layers": [1]}, "expected max_bytes or max_latency_ms"),
        ({"num_hidden_layers": [0], "max_bytes": 9}, "num_hidden_layers"),
    ],
)
def test_every_mistake_is_told(settings, told):
    with pytest.raises(ConfigError) as error:
        parse(NasConfig, settings, where="nas")
    assert told in str(error.value)
