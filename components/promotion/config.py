"""Settings of the gate and of the promotion behind it."""

from pydantic import Field

from bloomery.components.core.config import Config


class GateConfig(Config):
    """What a candidate has to show; each key is one kind of leg."""

    min_improvement: float = Field(default=0.0, ge=0)
    """A domain set must beat the champion (or, for a first version, the base model) by more than this, beyond the
    noise."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """One-sided confidence at which an improvement must exceed `min_improvement`; identical models pass 1 time in
    20."""
    min_score: dict[str, float] = {}
    """Absolute floors by `task.set`, such as `shop_sql.test: 0.6`."""
    max_forgetting: float = Field(default=0.02, ge=0)
    """Largest accepted drop of the mean score of a general task, against the base model; 0.02 is two points."""
    max_perplexity_ratio: float = Field(default=1.2, ge=1)
    """Largest accepted ratio of the perplexity of a general text to that of the base model."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Largest accepted size of the weights on disk; none: no limit."""


class PromotionConfig(Config):
    """The gate, and where an accepted model is registered."""

    gate: GateConfig = GateConfig()
    """The legs of the gate."""
    models_uri: str = "models"
    """Folder or store that keeps promoted checkpoints by content digest; the launcher puts a relative one under
    the workdir."""
