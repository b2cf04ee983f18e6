"""GGUF, the one file that llama.cpp and what is built on it serve: weights, tokenizer and chat template inside.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package rounds to types with one scale for 32
weights, k_quants.py to those with scales of scales.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.components.core.modelling import checkpoints, gguf_tokenizer, templates
from bloomery.components.quantisation import k_quants
from bloomery.components.quantisation.calibration import calibration_texts
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig

BLOCK = 32
"""Weights that share a scale in Q8_0, Q5_0 and Q4_0: a row must be a multiple of it."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What is written, by the name that transformers and the format both have for it."""
YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
"""Parameters of YaRN that are written; for all others llama.cpp has the paper's values."""
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What a matrix is written in whose rows are no multiple of 256, as llama-quantize has it."""


def export(config: QuantisationConfig, source: Path, chats: Path | None, target: Path) -> None:
    """Write model.gguf to `target`, and beside it config and tokenizer as they are in `source`.

    Norms stay in 32 bits, embeddings and head in 16 where `config.embeddings` is false.
    Raises: CannotRun for another architecture than ARCHITECTURES, another RoPE than the plain one, sliding windows,
            rows that are no multiple of 32, or a tokenizer that has no merges or that the file cannot hold so that it
            cuts the calibration chats into the same tokens.
    """
    from gguf import GGUFWriter, LlamaFileType

    network, tokenizer = checkpoints.load(source)
    settings = network.config
    _check_architecture(config, settings)
    head = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    target.mkdir(parents=True, exist_ok=True)
    file = target / "model.gguf"
    writer = GGUFWriter(file, settings.model_type)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    _add_rope(writer, settings.rope_parameters)
    writer.add_vocab_size(settings.vocab_size)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{config.scheme.removeprefix('gguf_').upper()}"])
    writer.add_quantization_version(2)
    _add_tokenizer(config, writer, tokenizer, settings.vocab_size)
    for name, stored, kind in _tensors(config, network):
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = calibration_texts(tokenizer, chats, config.calibration_chats)
    _check_tokenizer(config, gguf_tokenizer.load(file), tokenizer, texts)
    settings.save_pretrained(target)
    network.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _check_architecture(config: QuantisationConfig, settings: Any) -> None:
    """Raise CannotRun for a model that is not written."""
    found = settings.model_type
    if found in ARCHITECTURES:
        kind = settings.rope_parameters["rope_type"]
        has_windows = "sliding_attention" in (getattr(settings, "layer_types", None) or ())
        is_written = kind in ("default", "linear", "yarn") or (kind, found) == ("llama3", "llama")
        is_written &= kind != "yarn" or set(settings.rope_parameters) <= YARN
        differs = [f"RoPE {kind}"] * (not is_written) + ["sliding windows"] * has_windows
        if not differs:
            return
        found += f" with {' and '.join(differs)}"
    written = f"{', '.join(ARCHITECTURES[:-1])} and {ARCHITECTURES[-1]}"
    raise CannotRun(
        f"{config.name}: the model is {found}; a GGUF is written of {written}, with the default RoPE, or scaled by "
        "linear, yarn or llama3 (of llama alone), and no windows"
    )


def _add_rope(writer: Any, parameters: dict[str, Any]) -> None:
    """How positions are turned. What Llama 3.1 divides each frequency by is a tensor, see `_tensors`."""
    from gguf import RopeScalingType

    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(parameters["rope_type"]))
        writer.add_rope_scaling_factor(parameters["factor"])
    if parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def plain_template(template: str) -> str:
    """A chat template without the marks for the loss, which only training reads and few renderers know."""
    opened = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", opened)


def _kind(config: QuantisationConfig, name: str, columns: int, settings: Any) -> str:
    """The type of a matrix, by the name that it has in the file.

    Q4_K_M is llama-quantize's mix (github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp,
    llama_tensor_get_type_impl): Q6_K for the output head, and for attn_v and ffn_down in the first and last eighth of
    the layers and in every third between them. Its one exception for Llama is not followed: attn_v of the 70B models,
    in Q5_K there.
    """
    kind = config.scheme.removeprefix("gguf_").upper()
    if kind == "Q4_K_M":
        head = "token_embd.weight" if settings.tie_word_embeddings else "output.weight"
        inner = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
        more_bits = name == head or (inner and _has_more_bits(int(inner[1]), settings.num_hidden_layers))
        kind = "Q6_K" if more_bits else "Q4_K"
    return FALLBACK.get(kind, kind) if columns % k_quants.SUPER_BLOCK else kind


def _has_more_bits(layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _tensors(config: QuantisationConfig, network: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, bytes or numbers, type) of each tensor."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    settings = network.config
    if settings.rope_parameters["rope_type"] == "llama3":
        rotary = network.model.rotary_emb
        plain, _ = rotary.compute_default_rope_parameters(settings)
        yield "rope_freqs.weight", (plain / rotary.inv_freq).float().numpy(), GGMLQuantizationType.F32
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == settings.model_type)
    names = get_tensor_name_map(architecture, settings.num_hidden_layers)
    rounded = {"Q4_K": k_quants.q4_k, "Q6_K": k_quants.q6_k}
    for key, tensor in network.state_dict().items():
        if key == "lm_head.weight" and settings.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings where there is no output.weight
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        weight = tensor.float().numpy()
        if settings.model_type == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = settings.num_attention_heads if ".q_proj." in key else settings.num_key_value_heads
            # llama.cpp turns neighbouring numbers of a Llama by RoPE, transformers the halves of a head.
            weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        kind = "F32"
        if weight.ndim == 2:
            outer = key in ("model.embed_tokens.weight", "lm_head.weight")
            kind = _kind(config, name, weight.shape[1], settings) if config.embeddings or not outer else "F16"
            if weight.shape[1] % BLOCK:
                raise CannotRun(f"{config.name}: {key} has rows of {weight.shape[1]}, no multiple of {BLOCK}")
        numbered = GGMLQuantizationType[kind]
        yield name, rounded[kind](weight) if kind in rounded else quantize(weight, numbered), numbered


def _add_tokenizer(config: QuantisationConfig, writer: Any, tokenizer: Any, vocab_size: int) -> None:
    from gguf import TokenType

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    split = _split(config, content)
    if not content["model"]["merges"]:  # the `gguf` package then leaves the key out, and no reader knows BPE without
        raise CannotRun(
            f"{config.name}: the tokenizer is byte-level BPE without a merge, each byte a token, and a GGUF is read by "
            "its merges; take a model whose tokenizer has some, or another scheme"
        )
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, in the words of the format
    writer.add_tokenizer_pre(split)
    ids = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    types = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED, None: TokenType.NORMAL}
    writer.add_token_list([ids.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types(
        [types[added.get(index)] if index in ids else TokenType.UNUSED for index in range(vocab_size)]
    )
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    ends = templates.end_tokens(tokenizer)
    for name, index in (
        ("bos", tokenizer.bos_token_id),
        ("eos", next(iter(ends), None)),  # llama.cpp stops there: at the end of a turn
        ("eot", next(iter(ends), None)),
        ("pad", templates.pad_token(tokenizer)),
    ):
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    around = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(around[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(around[-1] == tokenizer.eos_token_id)
    writer.add_chat_template(plain_template(tokenizer.chat_template))


def _split(config: QuantisationConfig, content: dict[str, Any]) -> str:
    """llama.cpp's name of the way in which a tokenizer.json cuts text before it merges bytes."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre = content["pre_tokenizer"] or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if content["model"]["type"] == "BPE" and kinds[-1] == "ByteLevel" and not parts[-1]["add_prefix_space"]:
        if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1]["use_regex"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"]:
            for name in ("llama-bpe", "qwen2"):
                if parts[0]["pattern"].get("Regex") == GGUF_PRE_TOKENIZER_SPLITS[name]:
                    return name
    raise CannotRun(
        f"{config.name}: the tokenizer is {content['model']['type']} after {' and '.join(map(str, kinds))}; a GGUF is "
        "written of byte-level BPE with the splits of GPT-2, SmolLM, Llama 3 or Qwen 2"
    )


def _check_tokenizer(config: QuantisationConfig, restored: Any, tokenizer: Any, texts: list[str]) -> None:
    """Raise CannotRun unless the tokenizer in the file cuts `texts` as the checkpoint's does.

    Texts are composed (NFC) first: a GGUF holds no normalisation of Unicode.
    """
    for text in texts:
        text = unicodedata.normalize("NFC", text)
        found, expected = (of(text, add_special_tokens=False)["input_ids"] for of in (restored, tokenizer))
        if found != expected:
            raise CannotRun(
                f"{config.name}: the tokenizer in the GGUF cuts {text[:60]!r} into {len(found)} tokens that are not "
                f"the {len(expected)} of the checkpoint's"
            )
