"""What a model costs beside the one that it was made of: the numbers that every step which makes one smaller tells."""

from __future__ import annotations

from pathlib import Path

from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.latency import latency

PROMPT_TOKENS = 128
"""Tokens of the prompt that is timed, or half the context of a model that has less than twice as many."""
COSTS = ("parameters", "bytes", "prefill_seconds", "decode_seconds_per_token")
"""What is told of both models, of the one before as `parent_…`."""


def compared(step: str, parent: Path, model: Path, loaded: Generator | None = None) -> dict[str, float]:
    """COSTS of `model`, and as `parent_…` of the one that it was made of, as metrics of `step`: numbers in the weights,
    bytes of the weight files, medians of the seconds of a prompt of PROMPT_TOKENS and of a token after it (batch 1).

    Both are loaded, one after the other, as they stand on disk, but for a parent that is `loaded`; ModelError if one
    does not load.
    """
    told = {f"{step}/parent_{name}": value for name, value in measured(parent, loaded).items()}
    return told | {f"{step}/{name}": value for name, value in measured(model).items()}


def measured(path: Path, loaded: Generator | None = None) -> dict[str, float]:
    """COSTS of one model, which is `loaded` if it is given."""
    found = times(loaded or Generator.load(path))
    found |= {"parameters": checkpoints.num_parameters(path), "bytes": checkpoints.num_bytes(path)}
    return {name: float(found[name]) for name in COSTS}


def times(loaded: Generator) -> dict[str, float]:
    """As `latency.latency`, of a prompt of PROMPT_TOKENS; which tokens they are makes no difference."""
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 2 * PROMPT_TOKENS
    return latency(loaded, [[0] * max(1, min(PROMPT_TOKENS, context // 2))])
