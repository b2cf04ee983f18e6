"""Settings of post-training quantisation."""

from typing import Literal

from pydantic import Field

from bloomery.components.core.config import Config

Scheme = Literal["int8_weight_only", "int8_dynamic_activation"]


class PtqConfig(Config):
    """Post-training quantisation: every scheme exported, reloaded and measured; the smallest good one is chosen."""

    schemes: list[Scheme] = Field(default=["int8_weight_only", "int8_dynamic_activation"], min_length=1)
    """`int8_weight_only`: weights and embeddings in 8 bits, one scale a row; `int8_dynamic_activation`: also the
    inputs of the linear layers, scaled by token as they arrive (LLM.int8-style absmax, arXiv 2208.07339)."""
    tolerance: float = Field(default=0.01, ge=0)
    """Largest accepted drop of the mean score on the `validation` split; 0.01 is one point."""
