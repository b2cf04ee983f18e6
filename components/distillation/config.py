"""Settings of distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.modelling.fine_tuning import FineTuningConfig
from bloomery.components.core.modelling.named_models import NamedModel


class DistillationConfig(FineTuningConfig):
    """Distillation: fine-tuning on chats in which a teacher says how likely every token is.

    The loss of a token is `alpha` times the divergence of the student from the teacher and 1 - `alpha` times that of
    fine-tuning, and beside them `features` and `attention` times what their inner states differ by."""

    teacher: NamedModel
    """The model that is learnt from, with the tokenizer of the student: the stage's own model, which is trained."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """Of the student Q from the teacher P. `forward_kl`: KL(P‖Q), which covers all that the teacher may say (arXiv
    1503.02531; the one that Minitron, 2407.14679, recommends); `reverse_kl`: KL(Q‖P), which keeps to what it likes best
    (MiniLLM, 2306.08543), for a student too small for all; `jsd`: between the two, by `beta`."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """For `jsd`: β KL(P‖M) + (1 - β) KL(Q‖M), where M = β P + (1 - β) Q; near 0 it is like `forward_kl`, near 1 like
    `reverse_kl` (GKD, arXiv 2306.13649, equation 1, which tries 0.1, 0.5 and 0.9). 0.5 is symmetric."""
    temperature: float = Field(default=1.0, gt=0)
    """What the logits of both are divided by before they are compared; the divergence is multiplied by its square, so
    that `alpha` means the same at each (arXiv 1503.02531, section 2). 1: the probabilities as they are sampled from;
    more shows the student how the teacher ranks what is unlikely."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher's word; the rest is that of the chats' own answers. Best is a considerably lower weight of
    the latter (arXiv 1503.02531, section 2). 1 for a teacher that is better than the answers, as Gemma 2 and Minitron
    learn (2408.00118, section 3.2; 2407.14679)."""
    on_policy_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the batches in which the student answers the prompts itself and the teacher judges those answers (λ of
    GKD, arXiv 2306.13649, algorithm 1, where the more the better): it learns to go on from its own mistakes. 0: none,
    as answers cost as much as they do in serving."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest of the student's own answers, in tokens; 128 is TRL's default for GKD. With its prompt an answer stays
    within `max_length`."""
    features: float = Field(default=0.0, ge=0)
    """Weight of 1 - cosine between hidden states after the layers, evenly spaced (layer i of n looks at layer i m / n
    of m), as DistilBERT compares them (arXiv 1910.01108, section 3); where widths differ through a projection that is
    learnt beside (FitNets, 1412.6550) and thrown away. 0: not compared, which is enough where few layers were lost
    (2407.14679)."""
    attention: float = Field(default=0.0, ge=0)
    """Weight of the divergence between the self-attention relations of the last layers: the scaled products among
    queries, among keys and among values (MiniLMv2, arXiv 2012.15828), which need no equal number of heads. 0: not
    compared."""

    @property
    def apart(self) -> set[str]:
        """Stages whose model must not be the one that is trained: nothing is learnt from oneself."""
        return {self.teacher.stage}

    @model_validator(mode="after")
    def _is_taught(self) -> DistillationConfig:
        if problems := list(self._unfit()):
            raise ValueError("\n".join(problems))
        return self

    def _unfit(self) -> Iterator[str]:
        if self.divergence != "jsd" and self.beta != type(self).model_fields["beta"].default:
            yield f"beta: {self.divergence} does not read it; leave it out, or set divergence: jsd"
        if self.alpha == 0 and (self.on_policy_share or not (self.features or self.attention)):
            what = "the student's own answers have no loss" if self.on_policy_share else "the teacher says nothing"
            yield f"alpha: found 0, with which {what}; give it more, or take sft"
        if self.packing and self.on_policy_share:
            yield "packing: rows of several chats cannot be answered; set it to false, or on_policy_share to 0"
