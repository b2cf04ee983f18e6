"""Settings of supervised fine-tuning."""

from bloomery.components.core.modelling.fine_tuning import FineTuningConfig


class SftConfig(FineTuningConfig):
    """Supervised fine-tuning on chats, with the loss on assistant tokens."""

    TAKES_SOFT_PROMPT = True
