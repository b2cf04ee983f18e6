"""The optimiser of a training."""

from __future__ import annotations

from typing import Any, Literal

Optimizer = Literal["adamw", "muon"]


def chosen(name: Optimizer, model: Any, learning_rate: float, weight_decay: float) -> Any:
    """The optimiser `name` over the trainable weights of `model`, or None: the trainer's own AdamW."""
    if name == "adamw":
        return None
    from bloomery.components.core.modelling.muon import Muon

    return Muon(model, learning_rate, weight_decay=weight_decay)
