"""Published models: their configs, as config.json has them, and how their repositories hold weights."""

from __future__ import annotations

import json
from pathlib import Path

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def sharded(folder: Path) -> Path:
    """The last of two files that hold the weights of `folder` in place of one, with an index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {}
    for start, file in enumerate(sorted(SHARDS)):
        names = list(weights)[start::2]
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder / file


def in_the_makers_form_too(folder: Path) -> Path:
    """The weights of `folder` in shards, and again under other names, as Mistral, Llama and gpt-oss publish them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    sharded(folder)
    for place in ("consolidated.safetensors", "original/model.safetensors", "metal/model.bin"):
        (folder / place).parent.mkdir(exist_ok=True)
        save_file({f"layers.{name}": weight for name, weight in weights.items()}, folder / place)
    (folder / "original" / "config.json").write_text("{}")
    return folder


def weights_in(folder: Path) -> set[str]:
    """The names of the files of weights in `folder`, and of all within folders of it."""
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if "/" in name or not name.endswith((".json", ".jinja"))}
