"""Replay: what a model knew, read again while it learns something else, so that it forgets less.

Texts and exercises, which are chats, count by one measure, their characters, which no tokenizer changes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bloomery.components.core.data.chats import EXERCISE
from bloomery.components.core.modelling.training import TrainingConfig

logger = logging.getLogger(__name__)


class ReplayConfig(TrainingConfig):
    """Settings of a training that can replay."""

    replay_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of all characters that are read which is replayed, against forgetting: texts (for cpt the documents of
    sources with `general: true`, for fine-tuning the `train` rows of general perplexity tasks) and exercises (the
    `train` questions of general tasks, as chats). The first rows are taken, in their order, until the share is reached;
    in training they stand among the others in random order. None: all there are."""
    replay_exercises: float | None = Field(default=None, ge=0, le=1)
    """Part of the replayed characters that are exercises, of which the answers alone have a loss; the others are texts.
    None: in proportion to what there is of both."""


class Allowance:
    """What may yet be replayed of one kind of rows."""

    def __init__(self, characters: float) -> None:
        self._left = characters
        self.left_out = 0
        """Rows that were not taken."""

    @property
    def is_used_up(self) -> bool:
        return self._left <= 0

    def takes(self, characters: int) -> bool:
        """Whether a row of so many characters is replayed; the one that reaches the end is."""
        if self.is_used_up:
            self.left_out += 1
            return False
        self._left -= characters
        return True


def allowances(config: ReplayConfig, others: int, *, texts: int = 0, exercises: int = 0) -> tuple[Allowance, Allowance]:
    """What `config` lets be replayed of texts and of exercises beside so many characters of other rows.

    `texts` and `exercises` are the characters that there are of both, which tell their parts where the config does not.
    """
    if config.replay_share is None:
        return Allowance(math.inf), Allowance(math.inf)
    wanted = config.replay_share / (1 - config.replay_share) * others
    part = config.replay_exercises
    if part is None:
        part = exercises / max(1, texts + exercises)
    return Allowance((1 - part) * wanted), Allowance(part * wanted)


def is_exercise(chat: Mapping[str, Any]) -> bool:
    """Whether a chat/2 row is one."""
    return bool(chat["origin"] == EXERCISE)


def characters(chat: Mapping[str, Any]) -> int:
    """Characters of what is said and thought in a chat/2 row."""
    parts = ("content", "reasoning", "tool_calls")
    return sum(len(turn.get(part) or "") for turn in chat["messages"] for part in parts)


def fraction(config: ReplayConfig, replayed: int, others: int, where: str) -> float:
    """The share that was replayed, of characters; where it is far below that of `config`, with a warning."""
    found = replayed / max(1, replayed + others)
    if config.replay_share and found < 0.9 * config.replay_share:
        logger.warning(
            "%s: %.2g of what is read is replayed, where replay_share is %g: there is no more; give more rows of "
            "general text or of general tasks, or lower it",
            where,
            found,
            config.replay_share,
        )
    return found
