"""Settings of preflight: everything that a run takes from outside."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config
from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.data.chats import ChatSource
from bloomery.components.core.data.tables import SourceConfig
from bloomery.components.core.modelling.context import TooLong
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.modelling.plan import Training
from bloomery.components.core.modelling.reshaping import Reshaping
from bloomery.components.core.modelling.templates import TrainOn
from bloomery.components.core.repository_code import Consent
from bloomery.components.core.scoring.tasks import TaskConfig

StartFrom = Literal["base", "champion"]


class PreflightConfig(Config):
    """What comes from outside; the recipe fills it from its top-level keys."""

    base_model: str
    """Checkpoint folder, or the name of a model on the Hugging Face hub."""
    revision: str = "main"
    """Revision of a hub model; a commit hash makes the run repeatable."""
    trust_remote_code: list[Consent] = []
    """The recipe's `trust_remote_code`."""
    chat_template: str = ""
    """The recipe's `chat_template`: `chatml`, or a file, for a model that has none; empty: the model's own."""
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    """The recipe's tasks."""
    sources: list[SourceConfig] = []
    """The recipe's document sources, and the examples of its learned quality."""
    chat_sources: list[ChatSource] = []
    """The recipe's sources of chats."""
    preference_sources: list[ChatSource] = []
    """The recipe's sources of preference pairs."""
    pair_kinds: list[PairKind] = []
    """What the stages that read these learn from; empty: no stage does."""
    max_length: int = Field(default=0, ge=0)
    """The `max_length` of the recipe's first stage that is fine-tuned on chats; 0: there is none."""
    most_tokens: int = Field(default=0, ge=0)
    """The largest `max_length` of the stages that are fine-tuned on chats; 0: there is none, or one cuts what is
    longer."""
    train_on: TrainOn = "all_turns"
    """The `train_on` of that stage."""
    train_reasoning: bool = True
    """The `train_reasoning` of that stage."""
    pair_max_length: int = Field(default=0, ge=0)
    """The `max_length` of the recipe's first stage that is trained on preference pairs; 0: there is none."""
    too_long: TooLong = "drop"
    """The recipe's `evaluation.too_long`."""
    limit: int | None = Field(default=None, gt=0)
    """The recipe's `evaluation.limit`."""
    trainings: dict[str, Training] = {}
    """What the memory of each stage that trains depends on, by its name."""
    on_accelerator: bool = False
    """Whether the recipe's `resources` name an accelerator, so that the trainings may run on another machine."""
    known_index: str = ""
    """Folder of an index that dedup wrote in an earlier run; empty: none."""
    encoder: str = ""
    """Checkpoint folder or hub name of dedup's encoder; empty: none."""
    encoder_revision: str = "main"
    """Revision of the encoder on the hub."""
    reshapings: list[Reshaping] = []
    """What the stages that write a model do to its shape, in their order; none where all leave it as it is."""
    outside: list[NamedModel] = []
    """Models from outside that stages of the recipe name beside the base model."""
    registered_model: str
    """Name in the model registry, whose champion the candidate has to beat."""
    models_uri: str = "models"
    """The recipe's `promotion.models_uri`."""
    start_from: StartFrom = "base"
    """The recipe's `start_from`."""
    lm_eval_tasks: list[str] = []
    """The recipe's `evaluation.lm_eval.tasks`."""
    min_free_bytes: int = Field(default=500_000_000, ge=0)
    """Refuse to start with less free disk space than this and ten times the base model (a checkpoint a stage, and
    copies)."""

    @property
    def inputs(self) -> list[SourceConfig | ChatSource]:
        """Every source."""
        return [*self.sources, *self.chat_sources, *self.preference_sources]

    @model_validator(mode="after")
    def _names_differ(self) -> PreflightConfig:
        names = [source.name for source in self.inputs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources share the name {', '.join(twice)}; give each its own")
        return self
