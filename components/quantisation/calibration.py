"""The chats that schemes calibrate on, which are part of the training mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import for_template
from bloomery.components.core.modelling import templates
from bloomery.components.quantisation.config import CannotRun

CALIBRATION_TOKENS = 512
"""Tokens of a calibration chat that are read."""


def calibration_chats(chats: Path | None, count: int) -> list[dict[str, Any]]:
    """`messages` and `tools` of `count` chats of the training mix: those of the lowest ids, which are digests and so a
    sample that every run draws alike.

    Raises: CannotRun where there are none.
    """
    if chats is None:
        raise CannotRun("it calibrates on the chats of the training mix, and no stage of this recipe writes any")
    rows = artifact.read_table(chats, "chat/2").select(["id", "messages", "tools"])
    return rows.sort_by("id").slice(0, count).to_pylist()


def calibration_texts(tokenizer: Any, chats: Path | None, count: int) -> list[str]:
    """The same chats as the template writes them."""
    return [
        tokenizer.apply_chat_template(
            for_template(chat["messages"]), tools=json.loads(chat["tools"] or "null"), tokenize=False
        )
        for chat in calibration_chats(chats, count)
    ]


def calibration_rows(tokenizer: Any, chats: list[dict[str, Any]]) -> list[tuple[list[int], list[bool]]]:
    """(token ids, which of them the assistant said) of the beginning of each chat."""
    rows = [templates.trained_tokens(tokenizer, chat["messages"], chat["tools"]) for chat in chats]
    return [(ids[:CALIBRATION_TOKENS], trained[:CALIBRATION_TOKENS]) for ids, trained in rows]
