"""Settings of synthetic_data."""

from __future__ import annotations

import re
from string import Formatter

from pydantic import Field, field_validator, model_validator

from bloomery.components.core.config import Config, Seed


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


class RaftConfig(Config):
    """Questions found in documents, asked beside their document and others (RAFT, arXiv 2403.10131)."""

    distractors: int = Field(default=4, ge=0)
    """Documents at most that stand beside a question and do not answer it; the paper's experiments have four."""
    oracle_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the questions whose own document is among them; the others are answered without it, so that something
    is learnt by heart as well. The paper finds 0.4 to 1 best by data set and takes 0.8 (its section 4)."""
    passage_characters: int = Field(default=1000, gt=0)
    """Longest passage of a document that is shown; more where what is quoted is longer."""
    prompt: str = "{documents}\n{question}"
    """Template of what is asked, over `documents` and `question`; write it as your search asks when it serves."""
    answer: str = "##begin_quote##{quote}##end_quote##\n{answer}"
    """Template of the answer where the oracle is shown, over `quote` (the part of the document that the pattern
    matches) and `answer`; the marks are the paper's. Without it the answer stands alone."""

    @model_validator(mode="after")
    def _fields_are_known(self) -> RaftConfig:
        known = {"prompt": {"documents", "question"}, "answer": {"quote", "answer"}}
        for name, fields in known.items():
            used = {field for _, field, *_ in Formatter().parse(getattr(self, name)) if field is not None}
            needed = {"answer"} if name == "answer" else fields
            if used - fields or needed - used:
                raise ValueError(
                    f"{name}: found the fields {', '.join(sorted(used)) or 'none'}; expected "
                    f"{', '.join(sorted(needed))}{' and perhaps quote' if name == 'answer' else ''}"
                )
        return self


class SyntheticDataConfig(Config):
    """Which questions and answers are made, and from what."""

    extract: list[ExtractConfig] = []
    """Patterns that turn parts of documents into questions with answers."""
    raft: RaftConfig | None = None
    """Ask what `extract` found once more, beside documents, for a model that will be given what a search finds; none:
    not."""
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
    seed: Seed = 0
    """Seed of the choice of seeds and rules."""

    @model_validator(mode="after")
    def _raft_has_questions(self) -> SyntheticDataConfig:
        if self.raft and not self.extract:
            raise ValueError("raft: asks what `extract` finds in documents, and there is no pattern; give one")
        return self
