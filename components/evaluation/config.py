"""Settings of evaluation."""

from pydantic import Field

from bloomery.components.core.config import Config


class EvaluationConfig(Config):
    """Every evaluation set of the recipe, answered greedily by one model."""

    max_length: int = Field(default=1024, gt=1)
    """Longest text, in tokens, that a perplexity task scores; the rest of a longer one is cut off."""
    limit: int | None = Field(default=None, gt=0)
    """Evaluate at most this many prompts of each set, in stored order; none: all."""
