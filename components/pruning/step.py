"""Pruning: a trained model made smaller, or sparse, without training; what follows it heals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import (
    calibration,
    checkpoints,
    costs,
    importance,
    named_models,
    surgery,
    tensor_files,
)
from bloomery.components.core.modelling.importance import Importance, Observed, Rows
from bloomery.components.core.modelling.surgery import Kept, Widths
from bloomery.components.pruning import sparsity
from bloomery.components.pruning.config import PruningConfig

logger = logging.getLogger(__name__)


@declare(accelerator=True)
def run(
    config: PruningConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
    chats: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
    outside: Annotated[Path | None, Reads("models/1", optional=True)] = None,
    first: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
) -> dict[str, float]:
    """Write `base_model` in the smaller shape of `config`, or with its share of weights at zero, to `model`.

    Weights are read, cut and written a tensor at a time; the model is loaded, once, where chats have to tell what
    matters, and before and after to take the time.

    Reads:   base_model (model/1); chats (chat/2), of which some are read where the settings want it; first (model/1) or
             outside (models/1): the model of `rewind`
    Writes:  model (model/1)
    Returns: pruning/parameters, pruning/bytes, pruning/prefill_seconds, pruning/decode_seconds_per_token and each of
             them as pruning/parent_… of base_model; pruning/layers, pruning/key_value_heads, pruning/channels;
             pruning/zero_fraction (of the matrices of the layers) where weights became zero.
    Raises:  ConfigError for an architecture whose layout is not known, or a shape that the model does not have;
             ModelError for weights that are not as config.json says, or a model of `rewind` that has another shape.
    """
    settings, whole = surgery.opened(base_model, "pruning")
    (small,) = surgery.shapes("pruning", settings, tensor_files.stored(base_model), config.cut)
    told: dict[str, float] = {}
    if config.sparsity is None:
        kept = chosen(config, base_model, whole, small, chats)
        surgery.write(base_model, kept, model)
        left_out = sorted(set(range(whole.layers)) - set(kept.layers))
        logger.info(
            "layers left out: %s; of the others %d groups and %d channels stay", left_out, *small[1:2], small[4]
        )
    else:
        rewound = named_models.located(config, (first,), outside)
        weights = rewound[config.rewind] if config.rewind else base_model
        norms = {}
        if config.importance == "activation":
            network, rows = _observed(config, base_model, chats)
            norms = importance.input_norms(network, rows)
        told["pruning/zero_fraction"] = sparsity.write(base_model, config.sparsity, norms, weights, model)
    artifact.seal(model, "model/1")
    return {
        **costs.compared("pruning", base_model, model),
        "pruning/layers": float(small.layers),
        "pruning/key_value_heads": float(small.groups),
        "pruning/channels": float(small.channels),
        **told,
    }


def chosen(config: PruningConfig, base_model: Path, whole: Widths, small: Widths, chats: Path | None) -> Kept:
    """What matters most in `base_model`, as much of it as `small` has."""
    found: Importance | None = None
    if "chats" in config.needed_inputs:
        by: Observed = "activation" if config.importance == "magnitude" else config.importance
        network, rows = _observed(config, base_model, chats)
        found = importance.of_rows(network, whole, rows, by)
    layers = found.best_layers(small.layers) if found else range(whole.layers)
    widths = importance.of_weights(base_model, whole) if found is None or config.importance == "magnitude" else found
    return widths.kept(layers, small.groups, small.channels)


def _observed(config: PruningConfig, base_model: Path, chats: Path | None) -> tuple[object, Rows]:
    """The model, loaded, and the rows that it is observed on."""
    assert chats is not None  # as the settings say by `needed_inputs`
    network, tokenizer = checkpoints.load(base_model, on=checkpoints.device())
    return network, calibration.calibration_rows(
        tokenizer, calibration.calibration_chats(chats, config.calibration_chats)
    )
