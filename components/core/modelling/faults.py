"""What is wrong with a checkpoint folder, read from its small files and the heads of its large ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bloomery.components.core import repository_code

CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "LMHead")
"""How architectures that go on with a text end, in transformers' names."""
BOTH_WAYS = (
    *("bert", "roberta", "camembert", "electra", "xlm-roberta", "xlm-roberta-xl", "megatron-bert", "ernie", "big_bird"),
    *("rembert", "roformer", "data2vec-text", "roberta-prelayernorm", "xmod"),
)
"""Architectures, by model_type, that see what follows a token unless their config says `is_decoder`."""
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")
"""Files that hold the pieces of a tokenizer."""
UNMASKED = ("rwkv",)
"""Architectures, by model_type, whose states take in what fills a batch: they have no attention to mask it in."""
SIZES = ("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "vocab_size")
"""Keys of a config that no model goes without, as far as it has them."""
SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
ADAPTER = "adapter_model.safetensors"
ORIGINALS = ("consolidated*", "original/*", "metal/*")
"""What repositories hold beside a model in transformers' form: the same weights in their maker's own (Mistral; Llama
and gpt-oss)."""
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack")


def weight_files(path: Path) -> list[Path]:
    """The files that a checkpoint's weights are loaded from, in the order of their names: what lies beside them may
    hold the same weights again."""
    return safetensors_files(path) or [file for file in [gguf(path)] if file]


def safetensors_files(path: Path) -> list[Path]:
    """Those of a checkpoint or an adapter that transformers and PEFT load, in the order of their names."""
    return [path / name for name in sorted(_wanted(path)) if os.path.lexists(path / name)]


def gguf(path: Path) -> Path | None:
    """The GGUF that a checkpoint is loaded from, if it has no safetensors."""
    return None if safetensors_files(path) else min(path.glob("*.gguf"), default=None)


def unread(folder: str, names: list[str]) -> set[str]:
    """Those of the `names` in a checkpoint folder that hold weights that are not loaded, as `copytree` ignores them."""
    read = {file.name for file in weight_files(Path(folder))}
    return {
        name for name in names if read and name not in read and (name.endswith(_WEIGHTS) or f"{name}/*" in ORIGINALS)
    }


def _wanted(path: Path) -> set[str]:
    """The names of the safetensors that are looked for: transformers reads the index if there is no single file."""
    if (path / "adapter_config.json").is_file():
        return {ADAPTER}
    if os.path.lexists(path / SINGLE) or not (path / INDEX).is_file():
        return {SINGLE}
    return set(read_json(path / INDEX).get("weight_map", {}).values())


def found(path: Path, *, to_train: bool = False, has_chats: bool = False) -> list[str]:
    """Every fault of a checkpoint folder, in words, with what to do; `to_train`: also what keeps it from being trained;
    `has_chats`: also that it has no chat template.

    Reads config, the tokenizer's settings and the heads of the weight files.
    """
    try:
        return _found(path, to_train, has_chats)
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or path} cannot be read ({error.strerror or error}); see its permissions"]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises: ValueError naming the file, with what to do."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is no JSON ({error}); fetch the checkpoint again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no JSON object; fetch the checkpoint again")
    return content


def _found(path: Path, to_train: bool, has_chats: bool) -> list[str]:
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        return [
            f"found adapter_config.json: these are adapter weights for {base}, no model; merge them first "
            "(PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)) and give the merged "
            "folder"
        ]
    if not (path / "config.json").is_file():
        return ["no config.json, so this is no checkpoint; give a folder written by save_pretrained"]
    config = read_json(path / "config.json")
    if (path / "generation_config.json").is_file():
        read_json(path / "generation_config.json")
    faults = [*_architecture(path, config), *_sizes(config), *_weights(path)]
    if to_train:
        faults += _untrainable(config, path)
    if not any(file for pattern in VOCABULARIES for file in path.glob(pattern)) and not gguf(path):
        faults.append("no tokenizer.json and no other vocabulary; save the tokenizer beside the weights")
    if has_chats and not has_template(path):
        faults.append(
            "the tokenizer has no chat template; set `chat_template: chatml` in the recipe, or the path of the "
            "template that the model was trained with"
        )
    return faults


def has_template(path: Path) -> bool:
    """Whether the folder holds a chat template, in any of the places where it may stand."""
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = path / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """(dtype as safetensors names it, shape) of each tensor in the folder's safetensors, from their heads alone."""
    held = {}
    for file in safetensors_files(path):
        for name, entry in head(file).items():
            if name != "__metadata__":
                held[name] = (entry["dtype"], entry["shape"])
    return held


def _architecture(path: Path, config: dict[str, Any]) -> list[str]:
    named = config.get("architectures") or []
    kind = ", ".join(named) or config.get("model_type", "none")
    if config.get("is_encoder_decoder"):
        return [f"the architecture is {kind}, an encoder and a decoder; expected a causal language model"]
    own, is_allowed = config.get("auto_map") or {}, repository_code.is_allowed(path)
    if "AutoModelForCausalLM" in own and is_allowed:
        return []
    if named and not any(name.endswith(CAUSAL) for name in named):
        return [
            f"the architecture is {kind}, which does not go on with a text; expected a causal language model, whose "
            "config.json names an architecture such as LlamaForCausalLM"
        ]
    if config.get("model_type") in UNMASKED:
        return [
            f"the architecture {kind} reads the padding of a batch as text, so that an answer would change with those "
            "beside it; take another"
        ]
    if config.get("model_type") in BOTH_WAYS and not config.get("is_decoder"):
        return [
            f"the architecture {kind} sees what follows a token as well as what stands before it; expected a causal "
            "language model"
        ]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if own and is_allowed:
            return [f"the code of {kind} has no AutoModelForCausalLM (auto_map); expected a causal language model"]
        if own:
            return [repository_code.refusal(path, f"the architecture {kind}")]
        from transformers import __version__

        return [
            f"the architecture is {kind} (model_type {config.get('model_type', 'not named')}), and transformers "
            f"{__version__} has no causal language model of that type; take another model, or a newer transformers"
        ]
    return []


def _sizes(config: dict[str, Any]) -> list[str]:
    """transformers makes a model of no layers where their number is below one, and says nothing."""
    told = {**config, **(config.get("text_config") or {})}
    wrong = [key for key in SIZES if told.get(key) is not None and not (type(told[key]) is int and told[key] > 0)]
    return [f"config.json: {key} is {told[key]!r}; expected a whole number above 0" for key in wrong]


def _weights(path: Path) -> list[str]:
    files, wanted = weight_files(path), _wanted(path)
    missing = sorted(wanted - {file.name for file in files})
    if wanted != {SINGLE} and missing:
        return [
            f"{INDEX} names {len(wanted)} files of weights and {len(missing)} are missing: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; fetch the checkpoint again"
        ]
    if not files:
        others = ", ".join(sorted(file.name for file in path.iterdir() if file.name.endswith(_WEIGHTS))) or "no weights"
        return [
            f"found {others}; expected {SINGLE}, or {INDEX} with the files that it names, or a *.gguf: fetch the whole "
            "checkpoint, and convert pickled weights (*.bin, *.pt) first, which can run code"
        ]
    return [fault for file in files if (fault := _broken(file))]


def _broken(file: Path) -> str:
    if not file.exists():
        return f"{file.name} is a link to {file.readlink()}, which is not there; fetch the checkpoint again"
    size = file.stat().st_size
    with file.open("rb") as opened:
        if opened.read(20).startswith(b"version https://git"):
            return f"{file.name} is a pointer of Git LFS and not the weights; run `git lfs pull`"
    if file.suffix != ".safetensors":
        return ""
    try:
        table = head(file)
    except (ValueError, OverflowError, MemoryError):
        return f"{file.name} is no safetensors file; fetch the checkpoint again"
    wanted = max((entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"), default=0)
    with file.open("rb") as opened:
        wanted += 8 + int.from_bytes(opened.read(8), "little")
    return f"{file.name} has {size:,} bytes and should have {wanted:,}; fetch it again" if size < wanted else ""


def _untrainable(config: dict[str, Any], path: Path) -> list[str]:
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantised")
        return [
            f"the weights are quantised ({method}), and rounded numbers cannot be trained; take the checkpoint in 16 "
            "bits that it was made of (quantisation is a step after training)"
        ]
    if gguf(path):
        return [
            "the weights are a GGUF, which loads to be asked but not to be trained; take the checkpoint in "
            "safetensors, or unpack it once: copy the state dict of from_pretrained(folder, gguf_file=...) into "
            "AutoModelForCausalLM.from_config(config) and save that"
        ]
    return []


def head(file: Path) -> dict[str, Any]:
    """The table of contents of a safetensors file: github.com/huggingface/safetensors#format."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if not 2 <= size <= file.stat().st_size:
            raise ValueError("no table of contents")
        return json.loads(opened.read(size))
