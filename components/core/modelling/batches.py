"""Which rows go into a batch together, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def grouped_by_length(trainer: type, lengths: Sequence[int], seed: int) -> type:
    """The `trainer` class, with batches of rows of like `lengths`, which hold little padding.

    The order of an epoch follows from `seed` and its number: a training that goes on in the third needs no other to
    find its place, where that of transformers is drawn from what the epochs before left of the random numbers.
    """
    import torch
    from torch.utils.data import Sampler
    from transformers.trainer_pt_utils import get_length_grouped_indices

    class ByLength(Sampler[int]):
        def __init__(self, group: int) -> None:
            self.group = group
            self.epoch = 0

        def __len__(self) -> int:
            return len(lengths)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            chance = torch.Generator()
            chance.manual_seed(1_000_003 * seed + self.epoch)
            return iter(get_length_grouped_indices(lengths, self.group, generator=chance))

    class Grouped(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Sampler[int]:
            return ByLength(self.args.train_batch_size * self.args.gradient_accumulation_steps)

    return Grouped
