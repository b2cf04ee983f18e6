"""Settings of chat_curation."""

from __future__ import annotations

from pydantic import Field, model_validator

from bloomery.components.core.config import Config, Seed
from bloomery.components.core.data import pii
from bloomery.components.core.data.chats import ChatSource


class ChatCurationConfig(Config):
    """Which conversations are learnt from."""

    chats: list[ChatSource] = []
    """Files of chats: OpenAI messages, ShareGPT, Alpaca, prompt and completion."""
    preferences: list[ChatSource] = []
    """Files of preference pairs, or of answers with a label or a score."""
    mask: list[pii.Kind] = list(pii.KINDS)
    """Kinds of personal data and secrets that are masked, in every turn and in what tools are asked and answer."""
    jaccard_threshold: float = Field(default=0.7, gt=0, lt=1)
    """Chats are near-duplicates if the character shingles of what is asked and those of what is answered both have at
    least this Jaccard similarity (dedup's value for documents), and their numbers, system prompts and tools are the
    same: one long context with another question, or one phrasing with another number, is no copy."""
    contamination_overlap: float = Field(default=0.8, gt=0, le=1)
    """A chat is contaminated if it holds at least this share of an evaluation item's character n-grams in one place
    (dedup's value)."""
    seed: Seed = 0
    """Seed of the MinHash permutations."""

    @property
    def inputs(self) -> list[ChatSource]:
        """Every source."""
        return [*self.chats, *self.preferences]

    @property
    def idle_outputs(self) -> set[str]:
        """Outputs that hold nothing of their own: those of the kind that is not read."""
        return {name for name, sources in (("chats", self.chats), ("preferences", self.preferences)) if not sources}

    @model_validator(mode="after")
    def _has_sources_of_different_names(self) -> ChatCurationConfig:
        names = [source.name for source in self.inputs]
        if not names:
            raise ValueError("nothing to read; give `chats` or `preferences`, or leave the stage out")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources share the name {', '.join(twice)}; give each its own")
        return self
