"""The optimiser of a training."""

from __future__ import annotations

from typing import Any, Literal

from bloomery.components.core.extras import need_bitsandbytes

Optimizer = Literal["adamw", "muon", "radam", "adafactor", "adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit"]
OF_TRANSFORMERS = {
    "adamw": "adamw_torch_fused",
    "adafactor": "adafactor",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "lion": "lion_32bit",
    "lion_8bit": "lion_8bit",
}
"""Those that the trainer makes itself, by its names."""
OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit")


def name_of(chosen: Optimizer) -> str:
    """The trainer's name of an optimiser; its default for one that `made` makes.

    Raises: MissingExtraError if it is one of bitsandbytes, which is not there.
    """
    if chosen in OF_BITSANDBYTES:
        need_bitsandbytes(f"optimizer: {chosen}")
    return OF_TRANSFORMERS.get(chosen, "adamw_torch_fused")


def made(chosen: Optimizer, model: Any, learning_rate: float, weight_decay: float) -> Any:
    """The optimiser over the trainable weights of `model`, or None where the trainer makes it by its name."""
    if chosen == "muon":
        from bloomery.components.core.modelling.muon import Muon

        return Muon(model, learning_rate, weight_decay=weight_decay)
    if chosen == "radam":
        from torch.optim import RAdam

        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return RAdam(trained, learning_rate, weight_decay=weight_decay, decoupled_weight_decay=True)
    return None
