"""Settings of choosing among the quantised variants."""

from pydantic import Field

from bloomery.components.core.config import Config


class PtqConfig(Config):
    """Post-training quantisation: of the variants that were exported and measured, the smallest good one is chosen.

    Good is a variant of which nothing says that it lost (`tolerance`, `max_perplexity_ratio`) and something says that
    it did not, at `confidence`: its score, or else that it answers as before (`min_agreement`), or, without a single
    question to ask, its perplexity.
    """

    tolerance: float = Field(default=0.01, ge=0)
    """Largest accepted drop of the mean score on the `validation` split; 0.01 is one point. To show so small a drop by
    scores alone takes 231 answers that are all equal; 76 show 0.03."""
    min_agreement: float = Field(default=0.9, ge=0, le=1)
    """Where scores alone show too little: least share of greedy answers that are word for word those of the model
    before, at its lower bound. 25 equal answers are enough for 0.9, nine never are. Equal scores can hide other
    answers, which users notice (flips, arXiv 2407.09141). Of 200 answers of the quickstart's model, schemes of 8 bits
    kept 92 to 99.5 %, those of four bits 70 to 88 % (tests/benchmarks/quantisation.json)."""
    max_perplexity_ratio: float = Field(default=1.03, ge=1)
    """Largest accepted perplexity, as a multiple of that of the model before, on texts outside the evaluation sets.
    1.03 is what llama.cpp's Q4_K_M costs Llama-3-8B, Q8_0 costs 1.0004 and Q4_0 1.08 (`llama-quantize --help`)."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """One-sided confidence of the bounds, as the gate's: a variant that is just too bad passes 1 time in 20."""
