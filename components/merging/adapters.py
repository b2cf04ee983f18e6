"""LoRA adapters side by side, added to the weights that they were trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import adapter_folders, checkpoints

logger = logging.getLogger(__name__)


def folder(label: str, path: Path) -> Path:
    """Where the adapter lies: `path` itself, or `adapter/` beside the weights of a stage's model.

    Raises: ModelError if there is none, or one that cannot be concatenated.
    """
    found = adapter_folders.found(label, path)
    adapter_folders.check_low_rank(label, found)
    return found


def added(base: Path, adapters: Sequence[tuple[str, Path]], weights: Sequence[float]) -> tuple[Any, Any]:
    """(model with all adapters merged, tokenizer): W + Σ wᵢ sᵢ Bᵢ Aᵢ, in 32 bits.

    PEFT's `add_weighted_adapter` with `cat` puts the Aᵢ, times weight and scaling, one above the other and the Bᵢ side
    by side, so that the product is the sum of the products, of whatever ranks, exactly.
    Raises: ModelError if an adapter does not fit the model, or its manifest tells that it was trained on another.
    """
    _check_bases(base, adapters)
    network, tokenizer = checkpoints.load(base, dtype="float32")
    wrapped = adapter_folders.attached(network, adapters, str(base))
    names = adapter_folders.names(len(adapters))
    # What is added up takes the config of the first, with a scale of 1 by lora_alpha / r, not by its root.
    wrapped.peft_config[names[0]].use_rslora = False
    wrapped.add_weighted_adapter(names, list(weights), "merged", combination_type="cat")
    return wrapped.merge_and_unload(adapter_names=["merged"]), tokenizer


def _check_bases(base: Path, adapters: Sequence[tuple[str, Path]]) -> None:
    """Raise ModelError for an adapter that was trained on another model than `base`; warn of those that do not tell."""
    own = artifact.read_manifest(base).digest
    for label, path in adapters:
        trained_on = adapter_folders.base_of(path)
        if trained_on is None:
            logger.warning("%s has no manifest that would tell whether it was trained on the stage's own model", label)
        elif trained_on != own:
            raise ModelError(
                f"{label}: its adapter was trained on the model {trained_on[:12]}, and the stage's own model is "
                f"{own[:12]}; let the stage go on `from` the one that the adapter was trained on"
            )
