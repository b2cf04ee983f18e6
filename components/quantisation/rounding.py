"""Four bits a weight and a scale for each group of a row: which layers are rounded, and to what. The export and the
training before it round by the same functions."""

from __future__ import annotations

from typing import Any

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a group's largest weight that its scale may stand for. The one with the least squared error is taken:
cutting the largest weight short leaves finer steps for the rest (OCTAV, arXiv 2206.06501)."""


def quantisable(model: Any, *, embeddings: bool) -> dict[str, Any]:
    """The linear layers of a model by name, and with `embeddings` its embeddings and an output head of its own."""
    import torch

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and (embeddings or module not in ends)
    }
    if model.config.tie_word_embeddings:
        found = {name: module for name, module in found.items() if module is not ends[1]}
    return found


def scales(weight_NK: Any, group_size: int) -> Any:
    """The scale of each group of a row, [N, K / group_size], by least squared error, as 16-bit numbers."""
    import torch

    weight_NGC = weight_NK.float().unflatten(-1, (-1, group_size))
    kind = weight_NK.dtype if weight_NK.dtype.itemsize == 2 else torch.bfloat16
    whole_NG = (weight_NGC.abs().amax(-1) / 7.5).clamp_min(torch.finfo(kind).tiny)
    best_NG, least_NG = whole_NG.to(kind), torch.full_like(whole_NG, torch.inf)
    for clip in CLIPS:
        scale_NG = (whole_NG * clip).to(kind)
        step_NG1 = scale_NG.float()[..., None]
        error_NG = ((weight_NGC / step_NG1).round().clamp(-8, 7) * step_NG1 - weight_NGC).square().sum(-1)
        best_NG = torch.where(error_NG < least_NG, scale_NG, best_NG)
        least_NG = torch.minimum(error_NG, least_NG)
    return best_NG


def rounded(weight_NK: Any, group_size: int) -> Any:
    """The weights that a loader of the packed ones gets back: it multiplies in the 16 bits of the scales."""
    scale_NG1 = scales(weight_NK, group_size)[..., None]
    step_NGC = (weight_NK.float().unflatten(-1, (-1, group_size)) / scale_NG1.float()).round().clamp(-8, 7)
    return (step_NGC.to(scale_NG1.dtype) * scale_NG1).flatten(-2).to(weight_NK.dtype)


def in_16_bits(weight: Any) -> Any:
    """A weight that is not packed, as it is written."""
    import torch

    return weight.to(torch.bfloat16) if weight.dtype == torch.float32 else weight
