"""Settings of the gate and of the promotion behind it."""

from pydantic import Field

from bloomery.components.core.config import Config


class GateConfig(Config):
    """What a candidate has to show; each key is one kind of leg."""

    min_improvement: float = Field(default=0.0, ge=0)
    """Each domain task must beat the champion (or, for a first version, the base model) by more than this, beyond the
    noise."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """One-sided confidence of every comparison: an equal model shows an improvement at most 1 time in 20. All legs
    have to pass, so that several of them need no correction (intersection-union test: Berger, Technometrics 24,
    1982)."""
    noise_repeats: int = Field(default=3, ge=1)
    """How often base, candidate and champion answer an evaluation prompt, from which the noise floor is measured."""
    min_score: dict[str, float] = {}
    """Absolute floors by `task.set`, such as `shop_sql.test: 0.6`."""
    max_forgetting: float = Field(default=0.05, ge=0)
    """Largest drop of the mean score of a general task, against the base and against the champion; 0.05 is five
    points. The set has to show, at `confidence`, that the drop is smaller: 300 prompts on which nine answers in ten
    agree show five points in 8 of 10 cases where nothing was lost, two points take 1,900 prompts."""
    max_perplexity_ratio: float = Field(default=1.2, ge=1)
    """Largest ratio of the perplexity of a general text to that of the base model, and of the champion."""
    max_safety_drop: float = Field(default=0.05, ge=0)
    """As `max_forgetting`, for the tasks of role `safety`: harmless fine-tuning alone makes models answer harmful
    questions (Qi et al., arXiv:2310.03693, table 3)."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Largest size of the weights on disk; none: no limit."""
    max_prefill_seconds: float | None = Field(default=None, gt=0)
    """Longest time to the first token, as ptq measured it at batch 1; none: no limit."""
    max_decode_seconds_per_token: float | None = Field(default=None, gt=0)
    """Longest time for each further token, as ptq measured it at batch 1; none: no limit."""
    decontaminated: bool = True
    """The documents have to have gone through dedup against the evaluation sets."""
    max_reject_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of the rows that curation may reject, and of the tasks' rows that may ask nothing. More than half
    says that a filter or a source is wrong, but for raw web pages: those lose nine rows in ten to rules made for them,
    and need a larger value. Of chats and pairs too."""
    max_duplicate_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of one source's documents that dedup may drop as copies, and of all chats and pairs that
    chat_curation may. By source, for beside a large source nobody sees that a small one, of documents of one template,
    is nearly gone. Of 23 real corpora copies took 46 % at most and 4 % in the middle (tests/benchmarks/real_data.json);
    several crawls of one site, or documents of which `dedup.known_index` knows most, need a larger value."""


class ModelCardConfig(Config):
    """What a model card says that no measurement knows."""

    license: str = ""
    """Licence of the weights, an SPDX identifier such as `apache-2.0`; that of the base model and of the data set its
    bounds."""
    intended_use: str = ""
    """What the model is for, in a sentence or a paragraph of Markdown."""
    limits: str = ""
    """What it is not for and where it is known to fail, as Markdown."""


class PromotionConfig(Config):
    """The gate, and where an accepted model is registered."""

    gate: GateConfig = GateConfig()
    """The legs of the gate."""
    model_card: ModelCardConfig = ModelCardConfig()
    """What the model card of a registered version says beside the measurements."""
    models_uri: str = "models"
    """Folder or store that keeps promoted checkpoints by content digest; the launcher puts a relative one under
    the workdir."""
