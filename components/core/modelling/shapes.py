"""What a model's memory and arithmetic follow from: its widths, read from config.json and, where they are there, from
the heads of its weight files. No weight is read, and no library of models is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import faults

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "output_layer")
"""In the names of matrices that are looked up, or are the head."""
TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures, by model_type, that store their matrices as inputs x outputs."""
EAGER = ("gpt_oss",)
"""Architectures, by model_type, whose attention has no fused kernel: their scores stand in memory."""


@dataclass(frozen=True)
class Shape:
    """Widths are in numbers, not bytes."""

    kind: str
    """transformers' model_type."""
    layers: int
    hidden: int
    intermediate: int
    """Of the feed-forward network that a token goes through; of a mixture, of all the experts that it goes through."""
    gated: bool
    """Whether the feed-forward network multiplies two projections, as Llama's does."""
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Whether the head is the embeddings."""
    context: int
    """Tokens that it was made for; 0: not told."""
    window: int
    """Tokens that attention looks back; 0: all."""
    eager: bool
    linear: tuple[tuple[str, int, int, int], ...]
    """(last part of the name, rows, columns, how many) of the matrices but embeddings and head; what experts are
    stored in is none of these where it has three dimensions."""
    parameters: int
    biases: int
    """Those of them that are biases."""
    active: int
    """Numbers that one token is multiplied with: all matrices and the head, of experts those that it goes through."""
    own_bytes: int
    """Bytes of a number as it is stored."""

    @property
    def embedded(self) -> int:
        """Numbers of the embeddings, or of the head."""
        return self.vocabulary * self.hidden

    @property
    def kv_numbers(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size


def read(path: Path) -> Shape:
    """The shape of the checkpoint folder `path`, of which config.json is enough for Llama and its kin.

    Raises: ModelError if config.json is not there, or tells too little and there are no safetensors beside it.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json, so nothing can be planned; give a folder written by save_pretrained")
    try:
        config = faults.read_json(path / "config.json")
        tensors = faults.tensors(path)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    return of(path, config, tensors)


def of(path: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]]) -> Shape:
    """The shape of a model of this config.json and of tensors of these dtypes and shapes, where they are known; `path`
    names it in errors. Raises: ModelError if both tell too little."""
    told = {**config, **(config.get("text_config") or {})}
    lacking = [names[0] for names in _NEEDED if not _first(told, *names)]
    if lacking:
        raise ModelError(
            f"{path}: config.json ({told.get('model_type', 'no model_type')}) does not tell {', '.join(lacking)}; "
            "only models of attention and feed-forward layers can be planned"
        )
    matrices = {name: shape for name, (_, shape) in tensors.items() if name.endswith("weight") and len(shape) > 1}
    return _of_tensors(told, tensors, matrices) if matrices else _of_config(path, told)


_NEEDED = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_head", "num_heads"),
    ("vocab_size",),
)


def _first(told: dict[str, Any], *names: str) -> int:
    return int(next((told[name] for name in names if told.get(name)), 0))


def _widths(told: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, heads, vocabulary = (_first(told, *names) for names in _NEEDED)
    experts = _first(told, "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
    own = _first(told, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    shared = _first(told, "n_shared_experts") * _first(told, "moe_intermediate_size")
    shared += _first(told, "shared_expert_intermediate_size")
    stored = str(told.get("dtype") or told.get("torch_dtype") or "float32").removeprefix("torch.")
    kind = str(told.get("model_type", ""))
    return {
        "kind": kind,
        "layers": layers,
        "hidden": hidden,
        "intermediate": experts * (_first(told, "moe_intermediate_size") or own) + shared if experts else own,
        "heads": heads,
        "kv_heads": _first(told, "num_key_value_heads") or (1 if told.get("multi_query") else heads),
        "head_size": _first(told, "head_dim") or hidden // heads,
        "vocabulary": vocabulary,
        "context": _first(told, "max_position_embeddings", "n_positions", "max_seq_len"),
        "window": _first(told, "sliding_window") if told.get("use_sliding_window", True) else 0,
        "eager": kind in EAGER or bool(told.get("attn_logit_softcapping")),
        "own_bytes": BYTES.get(stored, 2),
    }


def _of_tensors(told: dict[str, Any], tensors: dict[str, Any], matrices: dict[str, list[int]]) -> Shape:
    """Every architecture: the matrices are those that are stored."""
    widths = _widths(told)
    heads = [name for name in matrices if "lm_head" in name or "output_layer" in name]
    counted: dict[tuple[str, int, int], int] = {}
    part = _part_of_experts(told)
    active = 0.0
    for name, shape in matrices.items():
        if any(word in name for word in EMBEDDINGS):
            continue
        if len(shape) == 2:
            rows, columns = shape[::-1] if widths["kind"] in TRANSPOSED else shape
            key = (name.split(".")[-2], rows, columns)
            counted[key] = counted.get(key, 0) + 1
        active += math.prod(shape) * (part if ".experts." in name else 1)
    return Shape(
        **widths,
        gated=any("gate" in name or "w3" in name for name, *_ in counted),
        tied=not heads,
        linear=tuple((*key, count) for key, count in counted.items()),
        parameters=sum(math.prod(shape) for _, shape in tensors.values()),
        biases=sum(math.prod(shape) for name, (_, shape) in tensors.items() if name.endswith("bias")),
        active=round(active) + widths["vocabulary"] * widths["hidden"],
    )


def _part_of_experts(told: dict[str, Any]) -> float:
    every = _first(told, "num_local_experts", "num_experts", "n_routed_experts")
    each = _first(told, "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
    return each / every if every and each else 1.0


LLAMAS = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "smollm3"),
    *("olmo2", "granite"),
)
"""Architectures, by model_type, whose layers have four projections of attention and three of a gated network."""


def _of_config(path: Path, told: dict[str, Any]) -> Shape:
    """Llama and its kin: the matrices follow from the widths."""
    widths = _widths(told)
    if widths["kind"] not in LLAMAS:
        raise ModelError(
            f"{path}: from config.json alone the weights of {widths['kind'] or 'a model without model_type'} are not "
            "known; put its safetensors beside it (their heads are read, no more)"
        )
    hidden, layers, size = widths["hidden"], widths["layers"], widths["head_size"]
    query, key = widths["heads"] * size, widths["kv_heads"] * size
    experts = _first(told, "num_local_experts", "num_experts") if _part_of_experts(told) < 1 else 0
    inner = (_first(told, "moe_intermediate_size") if experts else 0) or _first(told, "intermediate_size")
    attention = [("q_proj", query, hidden), ("k_proj", key, hidden), ("v_proj", key, hidden), ("o_proj", hidden, query)]
    network = [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
    biases = (query + 2 * key) * bool(told.get("attention_bias", widths["kind"] in ("qwen2", "qwen2_moe")))
    biases += hidden * bool(told.get("attention_bias")) * (widths["kind"] not in ("qwen2", "qwen2_moe"))
    biases += (2 * inner + hidden) * bool(told.get("mlp_bias"))
    norms = (4 if widths["kind"] in ("gemma2", "gemma3", "gemma3_text") else 2) * hidden
    norms += 2 * size * (widths["kind"].startswith(("qwen3", "gemma3")))
    norms += (query + key) * (widths["kind"] == "olmo2")  # which span all heads
    of_attention = sum(rows * columns for _, rows, columns in attention)
    of_network = sum(rows * columns for _, rows, columns in network)
    router = experts * hidden
    tied = bool(told.get("tie_word_embeddings", widths["kind"].startswith("gemma")))
    embedded = widths["vocabulary"] * hidden
    matrices = of_attention + max(1, experts) * of_network + router
    active = layers * (of_attention + router + round(of_network * widths["intermediate"] / inner)) + embedded
    return Shape(
        **widths,
        gated=True,
        tied=tied,
        linear=tuple((*each, layers) for each in (*attention, *(() if experts else network))),
        parameters=layers * (matrices + norms + biases) + embedded * (1 if tied else 2) + hidden,
        biases=layers * biases,
        active=active,
    )
