"""Each scheme's way from a 16- or 32-bit checkpoint to one that is served as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.errors import MissingExtraError
from bloomery.components.core.extras import need_bitsandbytes
from bloomery.components.core.modelling import checkpoints, faults
from bloomery.components.quantisation import apart
from bloomery.components.quantisation.calibration import calibration_texts
from bloomery.components.quantisation.config import APART, CannotRun, QuantisationConfig


def installed(config: QuantisationConfig) -> bool:
    """True if nothing is `missing`: else the scheme may run tomorrow, and that it was skipped is no result to reuse."""
    return not missing(config)


def missing(config: QuantisationConfig) -> str:
    """What has to be installed before the scheme can run, as a sentence; "" if nothing."""
    try:
        if config.scheme in APART:
            apart.interpreter(config)
        if config.scheme.startswith("bitsandbytes"):
            need_bitsandbytes(config.name)
    except MissingExtraError as error:
        return str(error)
    return ""


def export(
    config: QuantisationConfig, source: Path, chats: Path | None, target: Path, *, tasks: Path | None = None
) -> dict[str, Any]:
    """Write `source` to `target` in the scheme of `config`; returns what the scheme tells about itself. `tasks` is what
    a variant with `qat` watches its loss on.

    Raises: CannotRun, also for what is `missing`.
    """
    if reason := missing(config):
        raise CannotRun(reason)
    if config.takes_no_code and repository_code.is_allowed(source):
        raise CannotRun(config.takes_no_code)
    details: dict[str, Any] = {}
    if config.scheme == "none":
        artifact.link_tree(source, target)
    elif config.scheme in ("int4_weight_only", "mixed_int4"):
        from bloomery.components.quantisation import int4

        details = int4.export(config, source, chats, target, tasks=tasks)
    elif config.scheme in APART:
        texts = calibration_texts(checkpoints.load_tokenizer(source), chats, config.calibration_chats)
        apart.export(config, source, texts, target)
    elif config.scheme.startswith("bitsandbytes"):
        _bitsandbytes(config, source, target)
    elif config.scheme.startswith("gguf"):
        from bloomery.components.quantisation import gguf

        gguf.export(config, source, chats, target)
    else:
        from bloomery.components.quantisation import torchao

        torchao.export(config, source, target)
    if config.scheme != "none":
        for file in faults.safetensors_files(target):
            sort_header(file)
        repository_code.carry(source, target)
    if config.kv_cache_bits:
        _quantise_cache(target)
    return details


def _quantise_cache(target: Path) -> None:
    """Tell transformers to keep keys and values in float8, the one backend of its cache that needs no other library."""
    file = target / "generation_config.json"
    if not file.is_file():
        raise CannotRun("the checkpoint has no generation_config.json to say in that its cache is quantised")
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {"use_cache": True, "cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    artifact.write_atomically(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _bitsandbytes(config: QuantisationConfig, source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    stored = json.loads((source / "config.json").read_text())
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if config.scheme == "bitsandbytes_int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, stored.get("dtype") or "float32"),
        )
    )
    trust = repository_code.allowed(source)
    network = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype="auto", **trust)
    network.save_pretrained(target)
    checkpoints.load_tokenizer(source).save_pretrained(target)


def sort_header(file: Path) -> None:
    """Write a safetensors header in the order of its keys: the library leaves metadata in the random order of a hash
    map, and equal weights would have different digests."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to 8 bytes
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
