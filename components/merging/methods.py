"""The arithmetic of merging, on flat tensors of 32 bits: every function sees the same part of one tensor of each model.

Nothing here depends on how a tensor is cut into parts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PARALLEL = 0.9995
"""Cosine from which an arc counts as a straight line, as in the implementations of the field (mergekit, slerp.py)."""


def linear(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of the models: Σ wᵢ θᵢ / Σ wᵢ.

    Source: model soups (Wortsman et al. 2022, arXiv 2203.05482, section 2), with weights.
    """
    return summed(parts, weights) / sum(weights)


def summed(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σ wᵢ τᵢ, which scaled and added to the base is task arithmetic.

    Source: Editing models with task arithmetic (Ilharco et al. 2022, arXiv 2212.04089, section 2).
    """
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part, alpha=weight)
    return total


def arc(t: float, dot: float, squares: tuple[float, float]) -> tuple[float, float]:
    """The factors of both models at `t` of the arc between them, from the dot product and the squared norms of whole
    tensors: sin((1 - t) Ω) / sin Ω and sin(t Ω) / sin Ω; of (anti)parallel and zero tensors 1 - t and t.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3, Ω being the angle between the flat
    tensors and their lengths going in as they are, as in mergekit's `slerp`.
    """
    norm = math.sqrt(squares[0] * squares[1])
    cosine = max(-1.0, min(1.0, dot / norm)) if norm else 1.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def trim_threshold(parts: Callable[[], Iterable[torch.Tensor]], size: int, density: float) -> float:
    """The smallest of the round(density · size) largest magnitudes of a tensor of `size` numbers, exactly.

    Found in two passes over the parts in 0.5 MiB of counts: magnitudes of 32-bit floats are ordered as their bits are,
    so the upper 16 bits tell the bucket and the lower 16 the number.
    """
    import torch

    wanted = max(1, round(density * size))
    found = 0
    for shift in (16, 0):
        counts = torch.zeros(2**16, dtype=torch.int64)
        for part in parts():
            bits = part.abs().view(torch.int32)
            kept = bits if shift else bits[(bits >> 16) == found]
            counts += torch.bincount((kept >> shift) & 0xFFFF, minlength=2**16)
        from_above = counts.flip(0).cumsum(0).flip(0)
        bucket = int((from_above >= wanted).nonzero().max())
        wanted -= int(from_above[bucket] - counts[bucket])
        found = (found << 16) | bucket
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).item()


def trimmed(part: torch.Tensor, threshold: float) -> torch.Tensor:
    """The part with 0 where the magnitude is below `threshold`: all that are as large as the smallest kept one stay.

    Source: TIES-Merging (Yadav et al. 2023, arXiv 2306.01708, section 4.2, step 1), a tensor at a time as in PEFT and
    mergekit, where the paper trims all weights together.
    """
    return part * (part.abs() >= threshold)


def elected(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of those differences whose sign is that of the weighted sum; 0 where all are 0.

    Source: TIES-Merging (arXiv 2306.01708, section 4.2, steps 2 and 3, and Algorithm 1, where weights are equal).
    A sum of 0 counts as positive, as in PEFT and mergekit.
    """
    import torch

    positive = summed(parts, weights) >= 0
    total, count = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        agrees = torch.where(positive, part > 0, part < 0)
        total.add_(part * agrees, alpha=weight)
        count.add_(agrees, alpha=weight)
    return torch.where(count > 0, total / count, 0.0)


def dropped(part: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """The part with each number kept with probability `density` and divided by it, else 0, drawn from `generator`.

    Source: DARE (Yu et al. 2023, arXiv 2311.03099, section 3.2), `density` being 1 - p.
    """
    import torch

    return part * (torch.rand(part.shape, generator=generator) < density) / density


def generator(seed: int, model: int, tensor: str) -> torch.Generator:
    """Random numbers of one tensor of one model, the same whatever else is drawn, and in whatever parts."""
    import torch

    digest = hashlib.sha256(f"{seed}/{model}/{tensor}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
