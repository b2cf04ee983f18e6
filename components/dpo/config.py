"""Settings of preference optimisation."""

from typing import Literal

from pydantic import Field

from bloomery.components.core.modelling.training import TooLong, TrainingConfig


class DpoConfig(TrainingConfig):
    """Preference optimisation on pairs of answers."""

    METHOD = "preference"

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO (arXiv 2305.18290); `ipo`: identity preference optimisation (2310.12036)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference model; 0.1 is the default of the DPO paper."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, added to the preference loss: without it DPO may
    lower the likelihood of both answers (Iterative RPO, arXiv 2404.19733, which uses 1)."""
    too_long: TooLong = "drop"
    """What becomes of a pair of which an answer, with the prompt, is longer than `max_length` tokens: `drop`: it is
    left out; `truncate_left`: its prompt loses its beginning, as far as one token of it is left; `error`: the run stops
    and names the first."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training, by prompt, for the margin before and after."""
