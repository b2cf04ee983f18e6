"""Merging: a model made of the weights of others, without training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.modelling import checkpoints, named_models, tensor_files
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.merging import adapters, stacking
from bloomery.components.merging.combining import Combination
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.ingredients import check_alike, opened, parameters

logger = logging.getLogger(__name__)


def run(
    config: MergingConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
    outside: Annotated[Path | None, Reads("models/1", optional=True)] = None,
    first: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
    second: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
    third: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
    fourth: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
) -> dict[str, float]:
    """Merge the models that `config` names, by its method, into `model`.

    Weights are read, merged in 32 bits and written a part of a tensor at a time, so that memory does not grow with the
    models; `lora_concatenation` alone loads `base_model`.

    Reads:   base_model (model/1): the stage's own model, which gives tokenizer, config and dtypes, and from which
             differences are taken; first to fourth (model/1): the models of the stages that `config` names, in its
             order; outside (models/1): its models from outside
    Writes:  model (model/1)
    Returns: merging/models, merging/layers, merging/parameters and, where tensors are combined, merging/relative_change
             (norm of the difference to base_model over the norm of base_model).
    Raises:  ModelError if models differ in a tensor, in what their config computes or in their vocabulary, if one of
             which the difference is taken is `base_model` itself, or if an adapter does not fit or was trained on
             another model; ConfigError for layers that a model does not have.
    """
    found = named_models.located(config, (first, second, third, fourth), outside)
    base = opened("the stage's own model", base_model)
    change: dict[str, float] = {}
    if config.method == "lora_concatenation":
        given = [(label(named), adapters.folder(label(named), found[named])) for named in config.models]
        network, tokenizer = adapters.added(base_model, given, [named.weight for named in config.models])
        checkpoints.save(model, network, tokenizer, like=base_model)  # which seals it
        num_models, num_layers = len(given), base.config.num_hidden_layers
    elif config.method in ("passthrough", "depth_up_scaling"):
        others = {named: opened(label(named), path) for named, path in found.items()}
        stacked = stacking.chosen(config, base, others)
        stacking.write_config(base, stacked, model)
        tensor_files.write(model, stacking.tensors(base, stacked), like=base_model)
        artifact.seal(model, "model/1")
        num_models, num_layers = len({layer.model.path for layer in stacked}), len(stacked)
    else:
        models = [opened(label(named), found[named]) for named in config.models]
        check_alike(base, models)
        combination = Combination(config, base, models)
        tensor_files.write(model, combination.tensors(), like=base_model)
        combination.check_moved()
        artifact.seal(model, "model/1")
        change = {"merging/relative_change": combination.relative_change()}
        num_models, num_layers = len(models), base.config.num_hidden_layers
    size = parameters(list(tensor_files.stored(model).values()))
    logger.info("%s of %d models: %d layers, %s parameters", config.method, num_models, num_layers, f"{size:,}")
    return {
        "merging/models": float(num_models),
        "merging/layers": float(num_layers),
        "merging/parameters": float(size),
        **change,
    }


def label(named: NamedModel) -> str:
    """How messages call a model."""
    return f"the stage {named.stage}" if named.stage else named.model
