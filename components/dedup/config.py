"""Settings of dedup."""

from __future__ import annotations

from pydantic import Field

from bloomery.components.core.config import Config


class DedupConfig(Config):
    """What counts as the same text."""

    jaccard_threshold: float = Field(default=0.7, gt=0, lt=1)
    """Documents whose character shingles have at least this Jaccard similarity are near-duplicates. On the
    quickstart, copies with every tenth word edited reach 0.70 or more, different documents 0.68 at most."""
    num_permutations: int = Field(default=128, ge=16, le=1024)
    """Length of a MinHash signature (FineWeb takes 112); the README says what is missed at which
    similarity."""
    contamination_overlap: float = Field(default=0.8, gt=0, le=1)
    """A document is contaminated if it holds at least this share of an evaluation item's character n-grams in
    one place (Llama 2, appendix A.6, also calls a sample contaminated from 0.8 on)."""
    seed: int = 0
    """Seed of the MinHash permutations."""
