"""Rows that are made as they are asked for: what is made of token ids on disk never stands in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Made = TypeVar("Made")


class Lazily(Sequence[Made]):
    """`count` items, each what `make` makes of its place, again each time that it is asked for."""

    def __init__(self, make: Callable[[int], Made], count: int) -> None:
        self._make = make
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        return self._make(self._places[at])


def dataset(rows: Sequence[dict[str, Any]]) -> Any:
    """A dataset of rows of the same keys, as a trainer takes it, which asks for a row when a batch holds it."""
    from datasets import Dataset

    def read(asked: dict[str, list[int]]) -> dict[str, list[Any]]:
        found = [rows[at] for at in asked["row"]]
        return {name: [row[name] for row in found] for name in found[0]}

    return Dataset.from_dict({"row": range(len(rows))}).with_transform(read)
