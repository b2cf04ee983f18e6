"""Which rows go into a batch together, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def grouped_by_length(trainer: type, lengths: Sequence[int], seed: int) -> type:
    """The `trainer` class, with batches of rows of like `lengths`, which hold little padding.

    The batches come in random order, but the longest row in the first, so that a lack of memory shows at once: in that
    of transformers they fall in length some times an epoch, and the loss rises and falls with them. The order of an
    epoch follows from `seed` and its number, so that a training that goes on in the third finds its place.
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
            rows = get_length_grouped_indices(lengths, self.group, generator=chance)
            batches = [rows[at : at + self.group] for at in range(0, len(rows), self.group)]
            # The first holds the longest row, and the last may be smaller than the others.
            order = [0, *(1 + torch.randperm(max(0, len(batches) - 2), generator=chance)).tolist(), len(batches) - 1]
            return (row for at in dict.fromkeys(order) for row in batches[at])

    class Grouped(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Sampler[int]:
            return ByLength(self.args.train_batch_size * self.args.gradient_accumulation_steps)

    return Grouped
