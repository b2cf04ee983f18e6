"""The course of the learning rate over a training, as a part of its peak."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal[
    "cosine", "linear", "constant_with_warmup", "constant_with_cooldown", "one_cycle", "step", "exponential"
]

COOLDOWN = 0.2
"""Share of the steps in which the rate falls to zero in the end (arXiv 2405.18392, section 4: 20 % is where more brings
little)."""
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 250_000
"""One cycle (arXiv 1708.07120) with the numbers of torch's OneCycleLR: the share of the steps in which the rate rises,
and where it begins and ends."""
DROPS = (0.5, 0.75)
"""Where the rate is divided by ten (He et al., arXiv 1512.03385, section 4.2: at 32k and 48k of 64k steps)."""
REMAINS = 0.01
"""What is left of the rate at the end of the exponential course."""


def factor(schedule: Schedule, step: int, *, steps: int, warmup: int) -> float:
    """What the peak learning rate is multiplied with in optimiser step `step`, from 0, of `steps`; the first `warmup`
    rise linearly, but in one cycle, which has a rise of its own."""
    if schedule == "one_cycle":
        top = max(1.0, RISE * steps - 1)
        if step <= top:
            return _between(FIRST, 1, step / top)
        return _between(1, LAST, (step - top) / max(1.0, steps - 1 - top))
    if step < warmup:
        return step / max(1, warmup)
    part = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return _between(1, 0, part)
    if schedule == "linear":
        return 1 - part
    if schedule == "constant_with_cooldown":
        return min(1, (1 - part) / COOLDOWN)
    if schedule == "step":
        return 0.1 ** sum(part >= drop for drop in DROPS)
    if schedule == "exponential":
        return REMAINS**part
    return 1.0


def _between(first: float, last: float, part: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * min(1, part))) / 2
