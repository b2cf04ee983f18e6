"""Adoption: another model becomes the one that the chain goes on from, as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bloomery.components.adoption.config import AdoptionConfig
from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.modelling import checkpoints, named_models


def run(
    config: AdoptionConfig,
    *,
    model: Annotated[Path, Writes("model/1")],
    outside: Annotated[Path | None, Reads("models/1", optional=True)] = None,
    named: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
) -> dict[str, float]:
    """Make the model that `config` names the `model` of this stage.

    Reads:   outside (models/1), or named (the model of a stage)
    Writes:  model (the same files, whose bytes are shared where they lie on one disk)
    Returns: adoption/parameters.
    Raises:  ModelError, naming every fault, if it lacks what training or serving needs.
    """
    (folder,) = named_models.located(config, (named,), outside).values()
    checkpoints.check(folder, to_train=True)
    artifact.link_tree(folder, model)
    artifact.seal(model, "model/1")
    return {"adoption/parameters": float(checkpoints.num_parameters(model))}
