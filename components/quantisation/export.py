"""Each scheme's way from a 16- or 32-bit checkpoint to one that is served as it stands."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.errors import MissingExtraError
from bloomery.components.quantisation.config import QuantisationConfig


class CannotRun(Exception):
    """This machine, or this model, cannot run the scheme; the message is the reason."""


def export(config: QuantisationConfig, source: Path, chats: Path, target: Path) -> dict[str, Any]:
    """Write `source` to `target` in the scheme of `config`; returns what the scheme tells about itself.

    Raises: CannotRun, or MissingExtraError where the scheme's library is not installed.
    """
    if config.scheme == "none":
        artifact.link_tree(source, target)
        return {}
    library = config.scheme.split("_")[0]
    details: dict[str, Any] = {}
    if library == "bitsandbytes":
        _bitsandbytes(config, source, target)
    elif library == "gguf":
        from bloomery.components.quantisation import gguf

        details = gguf.export(config, source, chats, target)
    elif config.scheme in ("int4_weight_only", "mixed_int4"):
        from bloomery.components.quantisation import int4

        details = int4.export(config, source, chats, target)
    elif config.scheme in ("gptq_int4", "awq_int4", "smoothquant_int8", "fp8_dynamic"):
        from bloomery.components.quantisation import apart

        apart.export(config, source, chats, target)
    else:
        from bloomery.components.quantisation import torchao

        torchao.export(config, source, target)
    for file in target.glob("*.safetensors"):
        sort_header(file)
    return details


def _bitsandbytes(config: QuantisationConfig, source: Path, target: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{config.scheme} needs bitsandbytes: pip install 'bloomery[bitsandbytes]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

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
    network = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype="auto")
    network.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def calibration_chats(chats: Path, count: int) -> list[list[dict[str, str]]]:
    """The messages of `count` chats of the training mix: those of the lowest ids, which are digests and so a sample
    that every run draws alike."""
    rows = artifact.read_table(chats, "chat/1").sort_by("id").slice(0, count)
    return rows["messages"].to_pylist()


def sort_header(file: Path) -> None:
    """Write a safetensors header in the order of its keys: the library leaves metadata in the random order of a hash
    map, and equal weights would have different digests."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to 8 bytes
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
