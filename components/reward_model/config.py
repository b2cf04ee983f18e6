"""Settings of a reward model."""

from pydantic import Field

from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.modelling.preference_rows import PreferenceConfig


class RewardModelConfig(PreferenceConfig):
    """A model that scores answers, learnt from pairs of them (Bradley-Terry: InstructGPT, arXiv 2203.02155, eq. 1), or
    from answers with a score (squared error: HelpSteer2, arXiv 2406.08673, section 4)."""

    METHOD = "reward_model"

    center: float = Field(default=0.01, ge=0)
    """Weight of the squared mean score of a pair, which holds scores near 0 (arXiv 2312.09244, equation 2, with 0.01);
    pairs alone say nothing of their level, and scores need no such weight."""

    @property
    def takes(self) -> frozenset[PairKind]:
        """Pairs, or scores."""
        return frozenset({"pair", "score"})
