"""Settings of dedup."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config, LocalPath, ModelName, Seed


class SemanticConfig(Config):
    """The same in other words: documents whose embeddings are close."""

    encoder: ModelName
    """Checkpoint folder, or the name of a model on the Hugging Face hub; any that transformers loads as AutoModel. A
    sentence encoder of the documents' languages is meant: the states of a plain language model all lie close."""
    revision: str = "main"
    """Revision of a hub model; a commit hash makes the run repeatable."""
    min_similarity: float = Field(default=0.95, gt=0, le=1)
    """Cosine similarity from which two documents say the same (SemDeDup, arXiv 2303.09540, keeps quality with the few
    per cent that lie above; which value that is depends on the encoder)."""
    max_length: int = Field(default=512, gt=0)
    """Tokens of a document that the encoder reads."""


class DedupConfig(Config):
    """What counts as the same text."""

    jaccard_threshold: float = Field(default=0.7, gt=0, lt=1)
    """Documents whose character shingles have at least this Jaccard similarity are near-duplicates. On the
    quickstart, copies with every tenth word edited reach 0.70 or more, different documents 0.68 at most."""
    num_permutations: int = Field(default=128, ge=16, le=1024)
    """Length of a MinHash signature (FineWeb takes 112); the README says what is missed at which
    similarity."""
    shingle_characters: int = Field(default=5, ge=1, le=32)
    """Characters in a shingle of alphabetic scripts. On word 5-grams copies with 5 % of their words edited reach
    Jaccard .8 in 8 % of cases, on 5 characters in 82 %."""
    dense_shingle_characters: int = Field(default=3, ge=1, le=32)
    """Characters in a shingle where a fifth of the letters are Hangul, kana or Chinese, which say more each: 3 find
    82 % of Korean copies with 5 % edits at Jaccard .8, 5 find 57 %. Told by the script, not by the document's
    language: a copy may be taken for another language than its original."""
    survivor: list[Literal["domain", "source", "newest", "quality", "longest"]] = ["domain", "longest"]
    """What decides which copy stays, the first rule first: `domain` before general text, `source` by `source_priority`,
    the `newest` by the field that the source's `time` names, the best `quality` score, the `longest`. Then the name of
    the source and the id decide."""
    source_priority: list[str] = []
    """Names of sources, the preferred first; others come after them. For the rule `source`."""
    semantic: SemanticConfig | None = None
    """A pass over embeddings after the others; none: no such pass."""
    contamination_overlap: float = Field(default=0.8, gt=0, le=1)
    """A document is contaminated if it holds at least this share of an evaluation item's character n-grams in
    one place (Llama 2, appendix A.6, also calls a sample contaminated from 0.8 on)."""
    write_index: bool = False
    """Write the artifact `index`, against which a later corpus can be deduplicated: 1 kB a document and its text."""
    known_index: LocalPath = ""
    """Folder of the `index` that an earlier run wrote with the same thresholds and lengths. Its documents are not read
    again, and copies of them go."""
    seed: Seed = 0
    """Seed of the MinHash permutations."""

    @model_validator(mode="after")
    def _priority_is_used(self) -> DedupConfig:
        if ("source" in self.survivor) != bool(self.source_priority):
            raise ValueError("`source` in `survivor` and names in `source_priority` need each other")
        return self
