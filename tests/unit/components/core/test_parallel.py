"""Order, errors and where the work is done."""

from __future__ import annotations

import math
import os
import sys
from functools import partial

import pytest

from bloomery.components.core.errors import MissingExtraError
from bloomery.components.core.parallel import map_ordered

PROCESS = partial(eval, "__import__('os').getpid()")
"""Worker processes import what they call, and cannot import a test."""


@pytest.mark.parametrize("releases_gil", [False, True])
def test_results_keep_the_order_of_the_items(releases_gil):
    squares = list(map_ordered(math.isqrt, [n * n for n in range(40)], releases_gil=releases_gil))
    assert squares == list(range(40))


def test_work_goes_to_threads_or_processes_and_few_items_stay_here():
    assert set(map_ordered(PROCESS, [{}] * 5)) == {os.getpid()}
    assert os.getpid() not in set(map_ordered(PROCESS, [{}] * 20))
    assert set(map_ordered(PROCESS, [{}] * 20, releases_gil=True)) == {os.getpid()}


@pytest.mark.parametrize("releases_gil", [False, True])
def test_an_error_comes_through_as_it_is(releases_gil):
    with pytest.raises(ValueError, match="must be nonnegative"):
        list(map_ordered(math.isqrt, [*range(30), -1], releases_gil=releases_gil))


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(10_000):
            taken.append(number)
            yield number

    results = map_ordered(math.isqrt, items(), releases_gil=True)
    for _ in range(10):
        next(results)
    assert len(taken) < 200
    results.close()


def test_ray_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bloomery\[ray\]'"):
        list(map_ordered(math.isqrt, range(3)))
