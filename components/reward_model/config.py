"""Settings of a reward model."""

from pydantic import Field

from bloomery.components.core.modelling.training import TooLong, TrainingConfig


class RewardModelConfig(TrainingConfig):
    """A model that scores answers, learnt from pairs of them (Bradley-Terry: InstructGPT, arXiv 2203.02155, eq. 1), or
    from answers with a score (squared error: HelpSteer2, arXiv 2406.08673, section 4)."""

    METHOD = "reward_model"

    center: float = Field(default=0.01, ge=0)
    """Weight of the squared mean score of a pair, which holds scores near 0 (arXiv 2312.09244, equation 2, with 0.01);
    pairs alone say nothing of their level, and scores need no such weight."""
    too_long: TooLong = "drop"
    """What becomes of a pair of which a chat is longer than `max_length` tokens, or of such a scored answer: `drop`: it
    is left out; `truncate_left`: its chats lose the beginning of the prompt, as far as one token of it is left;
    `error`: the run stops and names the first."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs, or scored answers, kept out of training, by prompt, for what is told of accuracy and of the
    bias to length."""
