"""Checkpoints: loading, saving and the checks that keep a wrong one from being trained, measured or served in
silence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError


def device() -> str:
    """Where a model answers fastest on this machine: `cuda`, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(path: Path, *, dtype: str = "auto", on: str = "cpu") -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer with left padding) of a checkpoint folder; `dtype` as in transformers.

    `on` is the device of the weights: `device()` for what answers, while trainers take them from the CPU to theirs.
    Weights of a GGUF are unpacked as they are loaded.
    Raises: ModelError if the folder holds neither safetensors nor a GGUF, or its tokenizer has no chat template or EOS.
    """
    check(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", module="torchao")  # of its own deprecations, which no user can act on
    gguf = next(path.glob("*.gguf"), None)
    weights = {"gguf_file": gguf.name} if gguf else {"use_safetensors": True}
    if gguf:
        _unpack_q5_0()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map=None if on == "cpu" else on, **weights
        )
        if gguf:  # transformers 5.23 then reads no generation_config.json
            model.generation_config = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: the checkpoint does not load: {str(error).splitlines()[0][:300]}") from None
    return model.eval(), tokenizer


def _unpack_q5_0() -> None:
    """Let transformers read Q5_0, which llama.cpp writes for Q4_K where a row is no multiple of 256: the reader of 5.23
    knows most types, and not this one."""
    import torch
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
    from transformers.integrations.gguf import dequant

    kind = GGMLQuantizationType.Q5_0
    if kind in dequant.GGML_BLOCK:
        return

    def unpack(blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(dequantize(blocks.cpu().numpy(), kind)).to(blocks.device, dtype)

    dequant.GGML_BLOCK[kind] = GGML_QUANT_SIZES[kind]
    dequant._DEQUANT[kind] = unpack


def save(path: Path, model: Any, tokenizer: Any) -> artifact.Manifest:
    """Write weights (safetensors), config and tokenizer under `path` and seal it as `model/1`."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return artifact.seal(path, "model/1")


def check(path: Path) -> None:
    """Raise ModelError, naming every fault, unless `path` holds what training and serving need.

    Reads only the small files: config, tokenizer and the names of the weight files.
    """
    faults = []
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json, so this is no checkpoint; give a folder written by save_pretrained")
    if not weight_files(path):
        found = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights"
        faults.append(
            f"found {found}; expected *.safetensors or *.gguf: pickled weights can run code, convert them first"
        )
    if not (path / "tokenizer_config.json").is_file():
        faults.append("no tokenizer_config.json; save the tokenizer beside the weights")
    else:
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        if not settings.get("chat_template") and not (path / "chat_template.jinja").is_file():
            faults.append(
                "the tokenizer has no chat template; set tokenizer.chat_template to the one the model was trained with"
            )
        if not settings.get("eos_token"):
            faults.append("the tokenizer has no EOS token; answers would never end: set tokenizer.eos_token")
    if faults:
        raise ModelError("\n".join(f"{path}: {fault}" for fault in faults))


def check_template(tokenizer: Any, where: Path) -> None:
    """Raise ModelError unless the chat template ends an assistant turn with EOS and marks it for the loss.

    A missing end is a model that never stops; a missing `{% generation %}` mark is a loss on the user's words, or
    on nothing.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    tokens = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, mask in zip(tokens["input_ids"], tokens["assistant_masks"], strict=True) if mask]
    if not trained:
        raise ModelError(
            f"{where}: the chat template has no {{% generation %}} … {{% endgeneration %}} around assistant "
            f"turns, so no token "
            "would be trained; add the marks to the template"
        )
    if tokenizer.eos_token_id not in trained:
        raise ModelError(
            f"{where}: an assistant turn of the chat template does not end with the EOS token "
            f"{tokenizer.eos_token!r} inside "
            "its generation marks, so the model would never learn to stop; move it inside"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"{where}: the pad token is {tokenizer.pad_token!r} and EOS is {tokenizer.eos_token!r}; they must "
            f"be two tokens, "
            "or EOS is masked as padding: add a pad token"
        )


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint that hold its weights, in the order of their names: *.safetensors, or a *.gguf."""
    return sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])


def num_bytes(path: Path) -> int:
    """Bytes of the weight files on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def fetch(uri: str, target: Path) -> None:
    """Copy the checkpoint at `uri` (a folder, or a store's URI) to `target`; ModelError if it is not there any more."""
    folder = Path(uri.removeprefix("file://"))
    if folder.is_dir():
        artifact.link_tree(folder, target)
        return
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
        system.get(path.rstrip("/") + "/", f"{target}/", recursive=True)
    except (OSError, ImportError, ValueError) as error:
        raise ModelError(
            f"{uri}: the registered checkpoint is not there ({str(error)[:200]}); restore it, or point the "
            f"registry's alias "
            "to a version that exists"
        ) from None


def publish(source: Path, store: str) -> str:
    """Copy the checkpoint `source` to `store`, under its content digest, and return the URI; a copy that is there is
    kept."""
    digest = artifact.read_manifest(source, "model/1").digest[:24]
    if "://" not in store:
        target = Path(store).absolute() / digest
        if not (target / artifact.MANIFEST).is_file():
            artifact.link_tree(source, target)
        return str(target)
    import fsspec

    uri = f"{store.rstrip('/')}/{digest}"
    system, path = fsspec.core.url_to_fs(uri)
    if not system.exists(f"{path}/{artifact.MANIFEST}"):
        system.put(f"{source}/", f"{path}/", recursive=True)
    return uri
