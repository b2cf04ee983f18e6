"""Settings of continued pre-training."""

from pydantic import Field

from bloomery.components.core.modelling.training import TrainingConfig


class CptConfig(TrainingConfig):
    """Continued pre-training: causal language modelling on packed documents."""

    METHOD = "cpt"

    replay_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the training characters taken from general documents, against forgetting; 5 % is where the loss of
    general ability was nearly gone in Ibrahim et al. 2024 (arXiv 2403.08763, section 6.1)."""
    validation_share: float = Field(default=0.03, gt=0, lt=0.5)
    """Share of the documents kept out of training, for the perplexities before and after."""
    infilling_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the documents that are cut in three, the middle last (FIM), so that the model learns to fill gaps. From
    0.5 to 0.9 it costs nothing left to right (arXiv 2207.14255, section 4). What completes code wants it."""
