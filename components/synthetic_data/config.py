"""Settings of synthetic_data."""

from __future__ import annotations

import re
from string import Formatter

from pydantic import Field, field_validator, model_validator

from bloomery.components.core.config import Config


class ExtractConfig(Config):
    """A pattern in documents that is a question with its answer."""

    pattern: str
    """Python regular expression (multi-line mode) whose named groups are the fields of the templates."""
    prompt: str
    """Template of the question, such as `{title}`."""
    answer: str
    """Template of the answer, such as `{sql}`."""
    task: str
    """Task of the recipe that verifies the answer."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _fields_are_groups(self) -> ExtractConfig:
        groups = set(re.compile(self.pattern).groupindex)
        parsed = (*Formatter().parse(self.prompt), *Formatter().parse(self.answer))
        unknown = sorted({field for _, field, *_ in parsed if field is not None} - groups)
        if unknown:
            known = ", ".join(sorted(groups)) or "none"
            raise ValueError(f"templates use {', '.join(unknown)}; the pattern's named groups are: {known}")
        return self


class SyntheticDataConfig(Config):
    """Which questions and answers are made, and from what."""

    extract: list[ExtractConfig] = []
    """Patterns that turn parts of documents into questions with answers."""
    recombined_per_chat: int = Field(default=0, ge=0)
    """Chats made from each seed and each document's question by putting other things of the same kind in question and
    answer; needs `entities` or numbers that both share."""
    entities: dict[str, dict[str, list[str]]] = {}
    """Things that may stand in each other's place: kind → value in the answer → its names in questions, one a language,
    such as `city: {Busan: [Busan, 부산]}`."""
    augmented_share: float = Field(default=0.2, ge=0, lt=1)
    """Largest share of augmented chats among all; 0 makes none. Rules vary the wording, not the meaning: a
    fifth adds noise that users bring (case, punctuation, spacing) without letting it outweigh what was
    written by people."""
    synonyms: dict[str, list[str]] = {}
    """Words or phrases and what may stand in their place, such as `show me: [list, give me]`."""
    seed: int = 0
    """Seed of the choice of seeds and rules."""
