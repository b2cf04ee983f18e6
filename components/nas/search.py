"""An evolutionary search among sub-networks: better ones are crossed and changed, generation after generation.

After Single Path One-Shot (Guo et al. 2020, arXiv 1904.00420, algorithm 1): candidates that break a limit are drawn
again, and none is judged twice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

TRIES = 50
"""Draws after which no further new child is looked for."""


class Candidate(NamedTuple):
    """A sub-network: which layers, and how many of the most important groups and channels of each."""

    layers: tuple[int, ...]
    groups: int
    channels: int


class Space(NamedTuple):
    """What may be chosen."""

    whole: int
    """Layers of the whole model."""
    depths: Sequence[int]
    groups: Sequence[int]
    channels: Sequence[int]

    def shapes(self) -> list[tuple[int, int, int]]:
        """Every (depth, groups, channels), the largest first."""
        return sorted(set(itertools.product(self.depths, self.groups, self.channels)), reverse=True)


JudgedT = TypeVar("JudgedT")


def search(
    space: Space,
    best_layers: Callable[[int], Sequence[int]],
    judge: Callable[[Candidate], JudgedT],
    is_allowed: Callable[[Candidate], bool],
    key: Callable[[JudgedT], tuple[float, ...]],
    *,
    population: int,
    generations: int,
    seed: int,
) -> dict[Candidate, JudgedT]:
    """Everything that was judged. `best_layers` gives so many layers to begin with, `key` of what a candidate was
    judged is larger for a better one.

    The first generation are the shapes with the most important layers, the largest first where there are more than fit,
    filled up by changes of them; of each later one the better half of all so far are the parents.
    """
    chance = random.Random(seed)
    judged: dict[Candidate, JudgedT] = {}
    first = [Candidate(tuple(best_layers(depth)), groups, channels) for depth, groups, channels in space.shapes()]
    for candidate in filter(is_allowed, first):
        if len(judged) < population:
            judged[candidate] = judge(candidate)
    for generation in range(generations + 1):
        parents = sorted(judged, key=lambda candidate: key(judged[candidate]), reverse=True)[: max(1, population // 2)]
        wanted = population if generation else population - len(judged)
        for _ in range(wanted if parents else 0):
            child = _child(space, parents, chance, lambda one: one not in judged and is_allowed(one))
            if child is None:
                break
            judged[child] = judge(child)
    return judged


def _child(
    space: Space, parents: Sequence[Candidate], chance: random.Random, is_new: Callable[[Candidate], bool]
) -> Candidate | None:
    for _ in range(TRIES):
        one, other = chance.choice(parents), chance.choice(parents)
        child = Candidate(one.layers, *(chance.choice(pair) for pair in zip(one[1:], other[1:], strict=True)))
        child = changed(space, child, chance)
        if is_new(child):
            return child
    return None


def changed(space: Space, candidate: Candidate, chance: random.Random) -> Candidate:
    """The candidate with another depth, another width, or one layer exchanged for one that it lacks."""
    kinds = ["depth"] * (len(set(space.depths)) > 1) + ["swap"] * (len(candidate.layers) < space.whole)
    kinds += ["groups"] * (len(set(space.groups)) > 1) + ["channels"] * (len(set(space.channels)) > 1)
    kind = chance.choice(kinds) if kinds else ""
    layers, lacking = list(candidate.layers), sorted(set(range(space.whole)) - set(candidate.layers))
    if kind in ("groups", "channels"):
        return candidate._replace(**{kind: chance.choice(getattr(space, kind))})
    if kind == "depth":
        depth = chance.choice(space.depths)
        layers = chance.sample(layers, min(depth, len(layers)))
        layers += chance.sample(lacking, depth - len(layers))
    elif kind == "swap":
        layers[chance.randrange(len(layers))] = chance.choice(lacking)
    return candidate._replace(layers=tuple(sorted(layers)))


def front(points: Sequence[tuple[float, tuple[float, ...]]]) -> list[bool]:
    """Of (cost, worth) points, those that no other beats in one without losing in the other."""
    return [not any(c <= cost and w >= worth and (c < cost or w > worth) for c, w in points) for cost, worth in points]
