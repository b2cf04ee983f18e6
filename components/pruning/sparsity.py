"""Single weights that become zero: which they are, and the sparse model, made a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.components.core.modelling import tensor_files
from bloomery.components.core.modelling.surgery import Share, check_rewound, is_pruned, zeros_of
from bloomery.components.core.modelling.tensor_files import Made, Stored

if TYPE_CHECKING:
    import torch


def kept(scores_OI: torch.Tensor, share: Share) -> torch.Tensor:
    """Which weights of a matrix [outputs, inputs] stay: of each output those of the highest scores, of equal ones the
    last. A share of zeros is rounded to whole weights of an output; of a pattern n:m n of m inputs stay.

    Weights are compared within an output, as Wanda does (arXiv 2306.11695, section 3).
    """
    import torch

    outputs, inputs = scores_OI.shape
    group, zeros = zeros_of("pruning", share, inputs)
    order_NG = scores_OI.view(-1, group).argsort(dim=1, stable=True)
    stays_NG = torch.ones(order_NG.shape, dtype=torch.bool).scatter_(1, order_NG[:, :zeros], False)
    return stays_NG.view(outputs, inputs)


def write(path: Path, share: Share, norms: Mapping[str, torch.Tensor], weights: Path, target: Path) -> float:
    """Write the weights of the checkpoint `weights` to `target`, zero where those of `path` matter least; it is whole
    once it is sealed. Returns the share of zeros in the matrices of the layers.

    `norms` are those of the inputs of each projection, by its name; without any the weights alone decide.
    Raises: ModelError if the two differ in a tensor's shape.
    """
    judged, written = tensor_files.stored(path), tensor_files.stored(weights)
    check_rewound("pruning", judged, written)
    counted = [0, 0]
    made = [
        Made(
            name,
            one.dtype,
            one.shape,
            partial(_thinned, judged[name], one, share, norms.get(name.removesuffix(".weight")), counted)
            if is_pruned(name)
            else one.parts,
        )
        for name, one in written.items()
    ]
    tensor_files.write(target, made, like=weights)
    return counted[0] / counted[1]


def _thinned(
    judged: Stored, written: Stored, share: Share, norms_I: torch.Tensor | None, counted: list[int]
) -> Iterator[torch.Tensor]:
    scores_OI = judged.read().view(judged.shape).float().abs()
    stays_OI = kept(scores_OI if norms_I is None else scores_OI * norms_I, share)
    weights_OI = written.read().view(written.shape) * stays_OI
    counted[0] += int((weights_OI == 0).sum())
    counted[1] += weights_OI.numel()
    yield weights_OI.flatten()
