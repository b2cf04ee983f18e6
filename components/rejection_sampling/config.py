"""Settings of rejection sampling."""

from typing import Literal

from pydantic import Field

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.context import TooLong


class RejectionSamplingConfig(Config):
    """Rejection sampling: several answers a prompt, verified, the right ones kept."""

    num_samples: int = Field(default=8, gt=0)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=0.8, gt=0)
    """Softmax temperature; 0.7 to 1.0 are usual for rejection sampling (RFT, arXiv 2308.01825, uses 0.7)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""
    too_long: TooLong = "drop"
    """Of a prompt that leaves no room in the model's context for an answer of `max_new_tokens`: `drop` makes it a
    reject, `truncate_left` asks it without the beginning of its last turn, `error` ends the run."""
    min_score: float = Field(default=1.0, gt=0, le=1)
    """An answer with this score of its verifier or more is right. 1: exactly right, as RFT keeps; text metrics (chrf,
    rouge_l, bleu) need less, which sets the quality of what is learnt: look at scores of good answers first."""
    judge: Literal["verifier", "reward_model"] = "verifier"
    """Who says what is right. `verifier`: `min_score`; a reward model of the chain then ranks the right answers.
    `reward_model`: the best of the samples is right and the others are wrong, the worst first (RAFT, arXiv 2304.06767),
    for questions whose right answers no verifier knows."""
    accepted_per_prompt: int = Field(default=1, gt=0)
    """Distinct right answers kept for each prompt, highest score first, of equal ones the most frequent."""
    pairs_per_prompt: int = Field(default=2, ge=0)
    """Preference pairs for each prompt that has right and wrong answers."""
    seed: int = 17
    """Seed of the sampling."""

    @property
    def needed_inputs(self) -> set[str]:
        """The reward model, where it judges."""
        return {"reward_model"} if self.judge == "reward_model" else set()
