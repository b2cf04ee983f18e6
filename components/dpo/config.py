"""Settings of preference optimisation."""

from typing import Any, Literal

from pydantic import Field, model_validator

from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.modelling.preference_rows import PreferenceConfig
from bloomery.components.core.modelling.training import check_whole

BETA = {"simpo": 2.0}
SFT_WEIGHT = {"simpo": 0.0, "kto": 0.0}
"""Defaults of the losses that differ from the others', by loss."""


class DpoConfig(PreferenceConfig):
    """Preference optimisation on pairs of answers, or on single answers that are good or bad."""

    METHOD = "preference"
    TAKES_SOFT_PROMPT = True

    loss: Literal["sigmoid", "ipo", "simpo", "orpo", "kto"] = "sigmoid"
    """`sigmoid`: DPO (arXiv 2305.18290); `ipo`: identity preference optimisation (2310.12036), on log-likelihoods a
    token as its authors ran it; `simpo`: the reward is the log-likelihood a token, and no reference has a part in it
    (2405.14734); `orpo`: the odds of the two answers, likewise without a reference (2403.07691); `kto`: single answers
    with a label, and pairs as two of them (2402.01306). A batch of `kto` is of answers, in an order that stays from
    epoch to epoch, and the side that has more of them weighs less, so that both weigh the same (its equation 8)."""
    beta: float = Field(default=0.1, gt=0)
    """`sigmoid`, `kto`: strength of the pull to the reference model; 0.1 is the default of the DPO paper, and TRL's of
    both. `ipo`: its tau. `orpo`: weight of the odds ratio, lambda in the paper; 0.1 is TRL's default of both. `simpo`:
    scale of the reward, 2 unless it is set (its section 3 finds 2.0 to 2.5 good everywhere)."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin of rewards that `simpo` asks for; its authors advise half of beta to begin with. The others have none, and
    another value than the default is then an error."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, added to the preference loss: without it DPO may
    lower the likelihood of both answers (Iterative RPO, arXiv 2404.19733, which uses 1). It is a part of `orpo`, where
    it weighs 1 as well; `simpo` and `kto` were published without: 0 unless it is set, and for `kto` always."""
    max_chosen_loss: float = Field(default=0.1, ge=0)
    """Nats a token that the chosen answers may lose while the margin grows, before an alarm tells of it: the reward
    then rises because the rejected answers fall faster (likelihood displacement, arXiv 2410.08847). 0.1 is a tenth of
    the probability of a token; the number is our own."""
    max_kl: float | None = Field(default=None, gt=0)
    """Budget of the divergence from the model that training began with, in nats an answer, as `kl` estimates it; beyond
    it an alarm is told. What a good run spends differs by task (arXiv 2210.10760, figure 1), so there is no default."""

    @property
    def takes(self) -> frozenset[PairKind]:
        """Pairs; labels, too, by `kto`."""
        return frozenset({"pair", "label"} if self.loss == "kto" else {"pair"})

    @model_validator(mode="before")
    @classmethod
    def _by_loss(cls, values: Any) -> Any:
        if isinstance(values, dict):
            loss = values.get("loss")
            usual = {"beta": BETA.get(loss), "sft_weight": SFT_WEIGHT.get(loss)}
            values = {**{name: value for name, value in usual.items() if value is not None}, **values}
        return values

    @model_validator(mode="after")
    def _fit_the_loss(self) -> "DpoConfig":
        if self.adapter and self.adapter.is_soft:
            check_whole(self.too_long, self.adapter.kind)
        if self.loss != "simpo" and self.gamma != 1:
            raise ValueError(f"gamma: found {self.gamma:g}; loss: {self.loss} has no margin, remove it or take simpo")
        if self.loss == "kto" and self.sft_weight:
            raise ValueError(
                f"sft_weight: found {self.sft_weight:g}; loss: kto has no such term, set it to 0 or take loss: sigmoid"
            )
        if self.loss == "kto" and self.batch_size < 2:
            raise ValueError(
                f"batch_size: found {self.batch_size}; loss: kto compares answers within a batch, expected 2 or more "
                "(fewer gradient_accumulation_steps make room)"
            )
        return self
