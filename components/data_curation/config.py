"""Settings of data_curation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config, Seed
from bloomery.components.core.data.pii import KINDS, Kind
from bloomery.components.core.data.tables import SourceConfig
from bloomery.components.data_curation.coverage import WantedSlice
from bloomery.components.data_curation.learned import LearnedQualityConfig


class DataCurationConfig(Config):
    """Which rows become documents."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Where documents come from."""
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] = ["en", "ko"]
    """ISO 639-1 codes to keep; a document whose language cannot be told (code, numbers, a few words) is
    kept."""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """Probability below which the language of a document counts as undecided (FineWeb keeps English from 0.65
    up, on whole web pages; 0.5 decides every foreign paragraph of the quickstart, of four sentences,
    rightly)."""
    quality_rules: list[
        Literal["domain", "korean", "gopher", "gopher_repetition", "c4", "c4_any_line", "fineweb"]
    ] = ["domain", "korean"]
    """Sets of rules that every document has to pass: `domain` and `korean` for notes and pages of any length, the
    others as their papers set them, for English web pages alone (`c4_any_line`: C4 without terminal punctuation, as
    FineWeb ran it)."""
    min_words: int = Field(default=5, gt=0)
    """Shortest document, in words between spaces. Gopher takes 50 for web pages; a domain's notes are
    shorter."""
    max_words: int = Field(default=100_000, gt=0)
    """Longest document, in words between spaces (Gopher, Rae et al. 2021, appendix A1.1)."""
    boilerplate_share: float = Field(default=0.01, gt=0, le=1)
    """A line near the head or foot of a larger share of a source's documents, and of at least 10, is
    boilerplate. In the quickstart the rarest planted line stands in 1.4 % of the documents, the most common
    other line in 0.6 %."""
    mask: list[Kind] = list(KINDS)
    """Kinds of personal data and secrets that become placeholders in the documents: all, or those named, such as
    `[email, phone, key]`; what a reject shows is always masked."""
    learned_quality: LearnedQualityConfig | None = None
    """A classifier trained on good and bad examples; none: rules alone."""
    wanted: list[WantedSlice] = []
    """What the corpus should hold, and how much of it; the report shows what is thin. Nothing is dropped for it."""
    num_topics: int = Field(default=8, ge=0, le=100)
    """Topics in the coverage report; 0: none."""
    seed: Seed = 0
    """Seed of the topics and of the learned quality's folds."""

    @property
    def inputs(self) -> list[SourceConfig]:
        """The sources, and the examples of the learned quality."""
        examples = [self.learned_quality.good, self.learned_quality.bad] if self.learned_quality else []
        return [*self.sources, *examples]

    @model_validator(mode="after")
    def _is_consistent(self) -> DataCurationConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        names = [source.name for source in self.inputs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources share the name {', '.join(twice)}; give each its own")
        return self
