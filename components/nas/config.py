"""Settings of the search for a smaller architecture."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from bloomery.components.core.config import Config, Seed
from bloomery.components.core.modelling.importance import Observed
from bloomery.components.core.modelling.surgery import Cut


class NasConfig(Config):
    """A search among the sub-networks of the stage's own model for the best that keeps a limit.

    Widths and depths are named in the words of config.json; the stage's own are among them only where they are listed.
    """

    num_hidden_layers: list[PositiveInt] = []
    """Numbers of layers to choose from; which layers they are is searched for. None given: all layers stay."""
    num_key_value_heads: list[PositiveInt] = []
    """Numbers of key-value heads, each with the query heads that read it, to choose from; none given: all stay."""
    intermediate_size: list[PositiveInt] = []
    """Numbers of channels of each layer's network to choose from; none given: all stay."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Largest weight file that is accepted."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Longest time of a decoded token that is accepted, in milliseconds, after a prompt of 128 tokens at batch size 1
    on the machine of the step."""
    importance: Observed = "activation"
    """What heads and channels matter by: of any number of them the most important stay, as in `pruning`."""
    calibration_chats: int = Field(default=128, gt=0)
    """Chats of the training mix that importance is observed on, of each at most 512 tokens."""
    population: int = Field(default=16, ge=2)
    """Sub-networks of a generation."""
    generations: int = Field(default=8, ge=0)
    """Generations after the first: at most `population` x (`generations` + 1) sub-networks are judged. The default of
    both is our own, of 144 in all; arXiv 1904.00420 takes 50 and 20 for a space of 4^20 (section 4)."""
    validation_rows: int = Field(default=64, gt=0)
    """Rows of the `validation` splits that judge each sub-network."""
    seed: Seed = 17
    """Seed of the search."""

    @property
    def needed_validation(self) -> str:
        """What it cannot do without of the `validation` splits."""
        return "rows"

    @property
    def cut(self) -> Cut:
        """What may be taken out."""
        return Cut(**{name: getattr(self, name) for name in Cut.model_fields.keys() & type(self).model_fields.keys()})

    @model_validator(mode="after")
    def _has_a_choice_and_a_limit(self) -> NasConfig:
        problems = []
        if not (self.num_hidden_layers or self.num_key_value_heads or self.intermediate_size):
            problems.append(
                "expected numbers to choose from: num_hidden_layers, num_key_value_heads, intermediate_size"
            )
        if self.max_bytes is None and self.max_latency_ms is None:
            problems.append("expected max_bytes or max_latency_ms: without a limit the largest sub-network is the best")
        if problems:
            raise ValueError("\n".join(problems))
        return self
