"""Settings of continued pre-training."""

from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.replay import ReplayConfig


class RopeScalingConfig(Config):
    """Positions beyond those that a model knows, by a scaled RoPE, in the words of transformers' `rope_parameters`."""

    rope_type: Literal["linear", "yarn", "llama3"]
    """`linear`: all positions are pressed together (2306.15595). `yarn`: those of slow frequencies are, those of fast
    ones stay, and attention is sharpened (2309.00071, sections 3.2 and 3.4, with its alpha of 1 and beta of 32).
    `llama3`: as in Llama 3.1, of slow frequencies too, and nothing is sharpened. A model that is scaled already is
    scaled further by its own type."""
    factor: float = Field(gt=1)
    """Times the positions that the model knows, it is to know afterwards: 4 makes 32,768 of 8,192."""


class CptConfig(ReplayConfig):
    """Continued pre-training: causal language modelling on packed documents."""

    METHOD = "cpt"

    replay_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of all characters that are read which is replayed, against forgetting: texts, which are documents of
    sources with `general: true`, and exercises, in their order until it is reached; 5 % is where the loss of general
    ability was nearly gone in Ibrahim et al. 2024 (arXiv 2403.08763, section 6.1)."""
    replay_exercises: float = Field(default=0.0, ge=0, le=1)
    """Part of the replayed characters that are exercises: the `train` questions of general tasks, as chats, which stand
    whole in blocks of their own with a loss on the answers alone. The others are texts."""
    rope_scaling: RopeScalingConfig | None = None
    """Let the model learn longer rows than it knows, such as `{rope_type: yarn, factor: 4}`, with a `max_length` of as
    many tokens; it stands in the config.json that is written. None: the positions stay those of the model."""
    validation_share: float = Field(default=0.03, gt=0, lt=0.5)
    """Share of the documents kept out of training, for the perplexities before and after."""
    infilling_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the documents that are cut in three, the middle last (FIM), so that the model learns to fill gaps. From
    0.5 to 0.9 it costs nothing left to right (arXiv 2207.14255, section 4). What completes code wants it."""

    @model_validator(mode="after")
    def _replays_what_it_names(self) -> "CptConfig":
        if self.replay_exercises and not self.replay_share:
            raise ValueError("replay_exercises: a part of nothing, as replay_share is 0; set replay_share")
        return self

    @property
    def needed_inputs(self) -> set[str]:
        """Optional inputs of the step that these settings cannot do without."""
        return {"chats"} if self.replay_exercises else set()

    @property
    def idle_inputs(self) -> set[str]:
        """Optional inputs of the step that these settings do not read, so that no change of them trains anew."""
        return set() if self.replay_exercises else {"chats"}
