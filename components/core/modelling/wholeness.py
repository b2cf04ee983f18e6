"""Whether the tensors of a checkpoint are those that its config.json tells of: transformers makes what is missing at
random and leaves out what it does not know, and says so in a log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bloomery.components.core import repository_code
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import faults, tensor_files

BESIDE = re.compile(
    r"(^|\.)(vision|visual|audio|image|multi_modal|mm_|mtp|nextn)|\.masked_bias$|\.attn\.bias$|rotary_emb\.inv_freq$"
)
"""In the names of tensors that a causal language model goes without: parts that see and hear, heads that guess further
tokens (DeepSeek-V3, arXiv 2412.19437, section 2.2), and masks and frequencies, which are no parameters."""
MOST_NAMED = 3
"""Tensors of a kind that a message names."""


def check(path: Path) -> None:
    """Raise ModelError unless the safetensors of a checkpoint folder hold the tensors that its config.json tells of, in
    their shapes, and no other. Their heads alone are read; weights that are quantised, or a GGUF, are not looked at.

    The architecture is made on torch's meta device and takes the names and shapes as transformers would on loading,
    with its renamings, tied weights and buffers.
    """
    held = faults.tensors(path)
    config = faults.read_json(path / "config.json")
    if not held or config.get("quantization_config"):
        return
    layers = _layers(config)
    if layers > len(held):  # to make them all would take long
        raise ModelError(_differing(path, [f"{len(held)} tensors in all, and the config wants {layers} layers"]))
    try:
        found = _loaded(path, held)
    except Exception as error:  # of any kind: a config is read by code of its architecture
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise ModelError(f"{path}: config.json does not make a model: {reason}") from None
    check_found(path, found)


def check_found(path: Path, found: dict[str, Any]) -> None:
    """Raise ModelError where what transformers tells of a loading (`output_loading_info`) is that config.json and
    tensors differ."""
    config = faults.read_json(path / "config.json")
    ends = _layers(config), _layers(config) + int(config.get("num_nextn_predict_layers") or 0)
    left = [name for name in found["unexpected_keys"] if not BESIDE.search(name) and _layer(name) not in range(*ends)]
    if faults.gguf(path) or config.get("quantization_config"):
        left = []  # they hold scales and the like
    wrong = [(name, f" ({list(has)} instead of {list(wants)})") for name, has, wants in found["mismatched_keys"]]
    parts = [
        _named("of the weights that config.json wants would be random numbers", found["missing_keys"]),
        _named("have another shape", [f"{name}{told}" for name, told in wrong]),
        _named("are none that config.json tells of, and would be left out", left),
    ]
    if told := [part for part in parts if part]:
        raise ModelError(_differing(path, told))


def _differing(path: Path, told: Iterable[str]) -> str:
    return (
        f"{path}: config.json and the weights do not belong together: {'; '.join(told)}; fetch the checkpoint again, "
        "whole, and change neither by hand"
    )


def _named(what: str, names: Iterable[str]) -> str:
    known = sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    more = " …" if len(known) > MOST_NAMED else ""
    return f"{len(known)} {what}: {', '.join(known[:MOST_NAMED])}{more}" if known else ""


def _layers(config: dict[str, Any]) -> int:
    """Layers that config.json tells of; 0 where it tells of none."""
    told = {**config, **(config.get("text_config") or {})}
    return int(next((told[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if told.get(name)), 0))


def _layer(name: str) -> int | None:
    """The number in a tensor's name that is its layer's, as a rule the first."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _loaded(path: Path, held: dict[str, tuple[str, list[int]]]) -> dict[str, Any]:
    """What transformers tells of loading tensors of these dtypes and shapes, none of which takes memory."""
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(path, **repository_code.allowed(path))
    kind = repository_code.causal_class(path, config)
    if kind.config_class == config.sub_configs.get("text_config"):
        config = config.get_text_config()
    dtypes = {name: getattr(torch, tensor_files.DTYPES.get(stored, "float32")) for name, (stored, _) in held.items()}
    tensors = {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, (_, shape) in held.items()}
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would tell of them too
    try:
        _, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(before)
    return found
