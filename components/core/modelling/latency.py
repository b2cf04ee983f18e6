"""How long a model takes for a prompt and for each token after it, and what its cache of keys and values holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bloomery.components.core.modelling.generation import Generator

PREFILLS, DECODED_TOKENS = 5, 8
"""Prefills timed after a warm-up, and tokens decoded after each; medians over few short runs, as the schemes of a
model of a billion parameters on a CPU still have to be measured in minutes."""


def latency(generator: Generator, prompts: list[list[int]]) -> dict[str, float]:
    """prefill_tokens of the prompt (token ids) of median length, medians of prefill_seconds and
    decode_seconds_per_token at batch size 1, and kv_cache_bytes_per_token after it; one prefill and one answer go
    before, unmeasured."""
    import torch

    device = generator.model.device
    median = sorted(prompts, key=lambda ids: (len(ids), ids))[len(prompts) // 2]
    ids_1L = torch.tensor([median], device=device)
    finish: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    prefills, decodes = [], []
    with torch.inference_mode():
        for _ in range(PREFILLS + 1):
            finish()
            started = time.perf_counter()
            cache = new_cache(generator.model)
            out = generator.model(input_ids=ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token_11 = out.logits[:, -1:].argmax(-1)
            finish()
            prefills.append(time.perf_counter() - started)
            for _ in range(DECODED_TOKENS):
                started = time.perf_counter()
                out = generator.model(input_ids=token_11, past_key_values=cache, use_cache=True)
                token_11 = out.logits[:, -1:].argmax(-1)
                finish()
                decodes.append(time.perf_counter() - started)
    return {
        "prefill_tokens": ids_1L.shape[1],
        "prefill_seconds": statistics.median(prefills[1:]),
        "decode_seconds_per_token": statistics.median(decodes[DECODED_TOKENS:]),
        "kv_cache_bytes_per_token": cache_bytes(cache) / (ids_1L.shape[1] + DECODED_TOKENS),
    }


def new_cache(model: Any) -> Any:
    """An empty cache of keys and values, of the kind that the checkpoint's generation settings name."""
    from transformers import DynamicCache, QuantizedCache

    settings, config = model.generation_config, model.config.get_text_config(decoder=True)
    if settings.cache_implementation == "quantized":
        return QuantizedCache(config=config, **settings.cache_config)
    return DynamicCache(config=config)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, with their scales."""
    import torch

    held = [part for layer in cache.layers for part in vars(layer).values()]
    tensors = [tensor for part in held for tensor in (part if isinstance(part, tuple) else (part,))]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
