"""More positions than a model was trained on: RoPE scaled in the model's own config, so that whatever loads the
checkpoint turns positions as it was trained to.

Left out: `dynamic`, whose frequencies follow the longest sequence so far, so that an answer would depend on those
before it, and cached keys would be turned otherwise than new ones (2309.00071, section 3.3); `longrope`, whose factors
are searched for.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.cpt.config import RopeScalingConfig

logger = logging.getLogger(__name__)

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of Llama 3.1's config.json."""


def scaled(base_model: Path, scaling: RopeScalingConfig, target: Path) -> Path:
    """`target`, with the checkpoint `base_model` written to it, its weights linked and RoPE scaled in its config.json.

    Raises: ModelError if it has no RoPE that one type scales, or one that is scaled by another type.
    """
    settings = checkpoints.load_config(base_model).get_text_config()
    own: dict[str, Any] = getattr(settings, "rope_parameters", None) or {}
    if own.get("rope_type") not in ("default", scaling.rope_type):
        found = f"RoPE of type {own['rope_type']}" if "rope_type" in own else "no RoPE that is one for all layers"
        raise ModelError(
            f"cpt.rope_scaling: found {found} in the config of this {settings.model_type}; {scaling.rope_type} scales "
            f"rope_parameters of type default or {scaling.rope_type}; give the model's own type, or leave it out"
        )
    known = settings.max_position_embeddings
    positions = round(known * scaling.factor)
    parameters = {**own, "rope_type": scaling.rope_type, "factor": own.get("factor", 1.0) * scaling.factor}
    if scaling.rope_type != "linear":
        parameters["original_max_position_embeddings"] = own.get("original_max_position_embeddings", known)
    if scaling.rope_type == "llama3":
        parameters = {**LLAMA3, **parameters}
    # Of the old factor; unset it follows from the new one, as in the paper. And the older name of the type.
    parameters = {name: value for name, value in parameters.items() if name not in ("attention_factor", "type")}
    artifact.link_tree(base_model, target)
    written = json.loads((target / "config.json").read_text(encoding="utf-8"))
    part = written.get("text_config", written)
    part.pop("rope_scaling", None)  # the older name of the same, which would be read first
    part |= {"rope_parameters": parameters, "max_position_embeddings": positions}
    artifact.write_atomically(target / "config.json", json.dumps(written, indent=2))
    logger.info("RoPE is scaled by %s: %d positions, where the model knew %d", scaling.rope_type, positions, known)
    return target


def check(network: Any, scaling: RopeScalingConfig) -> None:
    """Raise ModelError if `network` turns positions without asking its config."""
    if not any(getattr(module, "rope_type", "") == scaling.rope_type for module in network.modules()):
        raise ModelError(
            f"cpt.rope_scaling: {type(network).__name__} of transformers does not turn positions by its "
            "rope_parameters, so that they cannot be scaled; leave rope_scaling out"
        )
