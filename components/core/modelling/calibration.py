"""The chats that a model is observed on while it is made smaller: a part of the training mix."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.modelling import templates
from bloomery.components.core.modelling.proof import EndInsideError

CALIBRATION_TOKENS = 512
"""Tokens of a calibration chat that are read."""


def calibration_chats(chats: Path, count: int) -> list[dict[str, Any]]:
    """`messages` and `tools` of `count` rows of `chats` (chat/2): those of the lowest ids, which are digests and so a
    sample that every run draws alike."""
    rows = artifact.read_table(chats, "chat/2").select(["id", "messages", "tools"])
    return rows.sort_by("id").slice(0, count).to_pylist()


def calibration_rows(tokenizer: Any, chats: list[dict[str, Any]]) -> list[tuple[list[int], list[bool]]]:
    """(token ids, which of them the assistant said) of the beginning of each chat that training would take."""
    rows = []
    for chat in chats:
        with contextlib.suppress(EndInsideError):
            rows.append(templates.trained_tokens(tokenizer, chat["messages"], chat["tools"]))
    return [(ids[:CALIBRATION_TOKENS], trained[:CALIBRATION_TOKENS]) for ids, trained in rows]
