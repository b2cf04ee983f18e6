"""Several tasks in one training: how often rows of each are drawn, and which rows an epoch takes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pydantic import Field

from bloomery.components.core.config import Config

ALWAYS = -1
"""Group of rows that every epoch takes, whatever the mixture: texts that are read beside the chats."""


class MixingConfig(Config):
    """How often each task is drawn: by min(rows, limit) ^ (1 / temperature), as T5 mixes (arXiv 1910.10683, section
    3.5.2). Chats of no task are one more."""

    temperature: float = Field(ge=1)
    """1: in proportion to the rows; the higher, the more alike all tasks are drawn. T5 tries 2, 4 and 8 (table 11), of
    which 2 was best; it differs by how uneven the tasks are, so it has no default."""
    limit: int | None = Field(default=None, gt=0)
    """Rows from which on a task counts as no larger, K of the paper, which keeps one huge task from taking most of the
    training; none: no limit."""


def shares(counts: Sequence[int], mixing: MixingConfig) -> list[float]:
    """The part of an epoch that tasks of so many rows get."""
    weights = [min(count, mixing.limit or count) ** (1 / mixing.temperature) for count in counts]
    return [weight / sum(weights) for weight in weights]


def apportioned(parts: Sequence[float], total: int) -> list[int]:
    """`total` rows by `parts`, which sum to 1: each its whole rows, and those left by the largest remainders."""
    exact = [part * total for part in parts]
    whole = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_remainder[: total - sum(whole)]:
        whole[at] += 1
    return whole


class Mixture:
    """The rows of each epoch: as many as there are, by the shares of their groups.

    A group's rows come in one random order after another, and an epoch goes on where the last one ended: so a small
    group is read evenly often, no row twice before all once, and of a large one each epoch brings other rows. What an
    epoch takes follows from the seed and its number alone, so that a training that goes on in the third finds it.
    """

    def __init__(self, groups: Sequence[int], mixing: MixingConfig, seed: int) -> None:
        """`groups` holds the group of each row, ALWAYS for one that is in every epoch."""
        self._seed = seed
        self._orders: dict[tuple[int, int], list[int]] = {}
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(int(group), []).append(row)
        self._always = members.pop(ALWAYS, [])
        self._members = {group: members[group] for group in sorted(members)}
        counts = [len(rows) for rows in self._members.values()]
        self.sizes = dict(zip(self._members, apportioned(shares(counts, mixing), sum(counts)), strict=True))
        """Rows of each group in an epoch."""

    def epoch(self, number: int) -> list[int]:
        """The rows of an epoch, in stored order within a group; the first epoch is 0."""
        chosen = list(self._always)
        for group, rows in self._members.items():
            first = number * self.sizes[group]
            chosen += sorted(self._at(group, rows, place) for place in range(first, first + self.sizes[group]))
        return chosen

    def unseen(self, epochs: float) -> int:
        """Rows that no epoch takes; of an epoch that is not whole, the part of each group that it has on average."""
        return sum(max(0, len(rows) - round(epochs * self.sizes[group])) for group, rows in self._members.items())

    def _at(self, group: int, rows: Sequence[int], place: int) -> int:
        turn, at = divmod(place, len(rows))
        return rows[self._order(group, len(rows), turn)[at]]

    def _order(self, group: int, count: int, turn: int) -> list[int]:
        """The random order in which the rows of a group come the `turn`-th time."""
        key = (group, turn)
        if key not in self._orders:
            if len(self._orders) > 2 * len(self._members):
                self._orders.clear()
            order = list(range(count))
            random.Random(f"{self._seed}-{group}-{turn}").shuffle(order)
            self._orders[key] = order
        return self._orders[key]
