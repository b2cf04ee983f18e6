"""Models of one shape combined tensor by tensor, a part of each at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling.tensor_files import Made, Stored
from bloomery.components.merging import methods
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.ingredients import Ingredient

if TYPE_CHECKING:
    import torch

Parts = Iterator["torch.Tensor"]
FLOATING = ("F64", "F32", "F16", "BF16")


class Combination:
    """The merged tensors of `models`, for a method of `config` that goes tensor by tensor, and how far they are from
    `base`, which is known once they have all been made."""

    def __init__(self, config: MergingConfig, base: Ingredient, models: Sequence[Ingredient]) -> None:
        self._config, self._base, self._models = config, base, models
        self._weights = [merged.weight for merged in config.models]
        self._is_moved = [False] * len(models)
        self._squares = [0.0, 0.0]

    def tensors(self) -> Iterator[Made]:
        """Each tensor under its name and in its dtype in `base`."""
        for name, stored in self._base.tensors.items():
            parts = partial(self._counted if stored.dtype in FLOATING else self._copied, name)
            yield Made(self._base.full_names[name], stored.dtype, stored.shape, parts)

    def relative_change(self) -> float:
        """‖merged - base‖ / ‖base‖ over all weights."""
        return math.sqrt(self._squares[0] / self._squares[1]) if self._squares[1] else 0.0

    def check_moved(self) -> None:
        """Raise ModelError if a model of which the difference was taken is the base itself."""
        for model, is_moved in zip(self._models, self._is_moved, strict=True):
            if self._config.method not in ("linear", "slerp") and not is_moved:
                raise ModelError(
                    f"{model.label} has the very weights of {self._base.label}, so there is no difference to merge; "
                    "name by `from` the stage that all models were trained from, or `start`"
                )

    def _copied(self, name: str) -> Parts:
        """Numbers that are no weights, and cannot be reckoned with."""
        import torch

        for part, *others in zip(*(one.tensors[name].parts() for one in (self._base, *self._models)), strict=True):
            if not all(torch.equal(part, other) for other in others):
                raise ModelError(f"{name} holds no weights, and is not the same in all models, so it cannot be merged")
            yield part

    def _counted(self, name: str) -> Parts:
        for before, after in zip(_numbers(self._base.tensors[name]), self._merged(name), strict=True):
            moved = after - before
            self._squares[0] += float(moved @ moved)
            self._squares[1] += float(before @ before)
            yield after

    def _merged(self, name: str) -> Parts:
        method, weights = self._config.method, self._weights
        given = [model.tensors[name] for model in self._models]
        if method == "linear":
            yield from (methods.linear(parts, weights) for parts in _together(given))
        elif method == "slerp":
            factors = methods.arc(self._config.t or 0.0, *_products(given))
            yield from (methods.summed(parts, factors) for parts in _together(given))
        else:
            yield from self._moved(name)

    def _moved(self, name: str) -> Parts:
        """The base with the merged differences added."""
        join = methods.elected if self._config.method in ("ties", "dare_ties") else methods.summed
        thinned = [self._thinned(index, name) for index in range(len(self._models))]
        for before, *differences in zip(_numbers(self._base.tensors[name]), *thinned, strict=True):
            yield before.add(join(differences, self._weights), alpha=self._config.scale)

    def _thinned(self, index: int, name: str) -> Parts:
        """The parts of one model's difference, without what the method leaves out of it."""
        base, theirs = self._base.tensors[name], self._models[index].tensors[name]

        def differences() -> Parts:
            return (after - before for before, after in _together([base, theirs]))

        thin = self._thinner(index, name, differences)
        for part in differences():
            self._is_moved[index] |= bool(part.any())
            yield thin(part)

    def _thinner(
        self, index: int, name: str, differences: Callable[[], Parts]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        method, density = self._config.method, self._config.density or 1.0
        if method == "ties":
            size = self._base.tensors[name].size
            return partial(methods.trimmed, threshold=methods.trim_threshold(differences, size, density))
        if method in ("dare_linear", "dare_ties"):
            drawn = methods.generator(self._config.seed, index, name)
            return partial(methods.dropped, density=density, generator=drawn)
        return lambda part: part


def _numbers(stored: Stored) -> Parts:
    return (part.float() for part in stored.parts())


def _together(stored: Sequence[Stored]) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same part of each tensor, in 32 bits."""
    return zip(*map(_numbers, stored), strict=True)


def _products(stored: Sequence[Stored]) -> tuple[float, tuple[float, float]]:
    """(dot product, squared norms) of two tensors, their parts summed in 64 bits."""
    dot = first = second = 0.0
    for one, other in _together(stored):
        dot += float(one @ other)
        first += float(one @ one)
        second += float(other @ other)
    return dot, (first, second)
