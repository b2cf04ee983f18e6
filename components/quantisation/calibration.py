"""The chats that schemes calibrate on, which are part of the training mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloomery.components.core.data.chats import for_template
from bloomery.components.core.modelling import calibration
from bloomery.components.quantisation.config import CannotRun


def calibration_chats(chats: Path | None, count: int) -> list[dict[str, Any]]:
    """As `calibration.calibration_chats`. Raises: CannotRun where there are none."""
    if chats is None:
        raise CannotRun("it calibrates on the chats of the training mix, and no stage of this recipe writes any")
    return calibration.calibration_chats(chats, count)


def calibration_texts(tokenizer: Any, chats: Path | None, count: int) -> list[str]:
    """The same chats as the template writes them."""
    return [
        tokenizer.apply_chat_template(
            for_template(chat["messages"]), tools=json.loads(chat["tools"] or "null"), tokenize=False
        )
        for chat in calibration_chats(chats, count)
    ]
