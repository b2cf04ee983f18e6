"""Settings of evaluation."""

from pydantic import Field

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.context import TooLong
from bloomery.components.core.scoring.lm_eval_tasks import LmEvalConfig


class EvaluationConfig(Config):
    """Every evaluation set of the recipe, answered greedily by one model."""

    max_length: int = Field(default=1024, gt=1)
    """Longest text, in tokens, that a perplexity task scores; the rest of a longer one is cut off."""
    too_long: TooLong = "drop"
    """Of a question that leaves no room in the model's context for an answer of `max_new_tokens`: `drop` leaves it out,
    counted in `evaluation/<task>.<set>.too_long`, `truncate_left` takes off the beginning of its last turn, `error`
    ends the run. Answered beyond the context it would be scored wrong, and say nothing about the model."""
    limit: int | None = Field(default=None, gt=0)
    """Evaluate at most this many prompts of each set, in stored order; none: all."""
    repeats: int = Field(default=1, ge=1)
    """How often prompts are answered, each time in batches of another composition: the first is the evaluation, the
    others measure the noise of floating-point sums. The pipeline sets it by `promotion.gate.noise_repeats` for the
    models that the gate compares."""
    repeat_limit: int = Field(default=100, gt=0)
    """Prompts of each set that the repeats answer again; perplexities are not repeated."""
    lm_eval: LmEvalConfig | None = None
    """Tasks of lm-eval that every model answers too, once; none: the recipe's own tasks alone."""
