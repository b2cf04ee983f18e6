"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field

from bloomery.components.core.training import TrainingConfig


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on chats, with the loss on assistant tokens."""

    num_validations: int = Field(default=8, ge=0)
    """Validation passes over the `validation` split, evenly spread; 0: none."""
    keep: Literal["best", "last"] = "best"
    """`best`: the weights with the lowest validation loss; `last`: those at the end. With few examples exact
    answers can go on improving while the validation loss already rises; measure before choosing `last`."""
