"""What to change in a training so that it fits a device."""

from __future__ import annotations

import math
from typing import Any

from bloomery.components.core.modelling import plan, sharding
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.shapes import Shape

Fix = tuple[dict[str, str], plan.Training, plan.Need]
"""What to set, by key, the training that it makes, and what that takes."""


def cheapest(shape: Shape, training: plan.Training, card: Card, *, cards: int = 1) -> Fix | None:
    """The first change with which `training` fits, of those that cost more and more; None if none does.

    A smaller batch with accumulation trains the same; gradient checkpointing too, in a third more time; so do `cards`
    that share the training anyway and then share out the weights; LoRA, and QLoRA on a GPU, train something else. All
    weights in 16 bits are proposed to nobody.
    """
    tried: list[tuple[dict[str, str], dict[str, Any]]] = [({}, {})]
    again = {"gradient_checkpointing": "true"}, {"checkpointing": True}
    tried.append(again)
    if cards > 1 and training.shards is None and not sharding.problem(training.optimizer, training.adapter):
        tried.append(({**again[0], "resources.sharding": "full"}, {**again[1], "shards": cards}))
    if training.adapter is None and training.trained == "all":
        tried.append(({**again[0], "adapter": "{rank: 16}"}, {**again[1], "adapter": AdapterConfig()}))
    if card.is_gpu:
        four_bits = AdapterConfig(kind="qlora")
        tried.append(({**again[0], "adapter": "{kind: qlora}"}, {**again[1], "adapter": four_bits}))
    for told, changes in tried:
        if found := _smaller_batches(shape, training.model_copy(update=changes), card, told):
            return found
    return None


def _smaller_batches(shape: Shape, training: plan.Training, card: Card, told: dict[str, str]) -> Fix | None:
    """The largest batch that fits, with as many rows an optimiser step as `training` has."""
    size = training.batch_size
    parts = [part for part in range(1, math.isqrt(size) + 1) if size % part == 0]
    for batch in sorted({*parts, *(size // part for part in parts)}, reverse=True):
        rounds = training.accumulation * (size // batch)
        tried = training.model_copy(update={"batch_size": batch, "accumulation": rounds})
        need = plan.of_training(shape, tried, card)
        in_16_bits = training.adapter is None and training.precision == "auto" and need.dtype == "bf16"
        if need.peak <= plan.ROOM * card.memory_bytes and not in_16_bits:
            if batch != size:
                told = {"batch_size": str(batch), "gradient_accumulation_steps": str(rounds), **told}
            return told, tried, need
    return None


def as_settings(fix: dict[str, str]) -> str:
    """What to set, in the words of a recipe."""
    return ", ".join(f"{key}: {value}" for key, value in fix.items())
