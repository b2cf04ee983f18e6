"""The cache of keys and values: its kind is a setting of the checkpoint, its bytes are measured."""

import json

import pytest

from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.latency import latency
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.components.quantisation.export import export


def variant(tiny_model, folder, **settings):
    config = QuantisationConfig(**settings)
    export(config, tiny_model, folder / "no chats", folder / config.name)
    return folder / config.name


def test_a_checkpoint_keeps_the_kind_of_its_cache(tiny_model, tmp_path):
    before = (tiny_model / "generation_config.json").read_bytes()
    folder = variant(tiny_model, tmp_path, scheme="none", kv_cache_bits=8)
    assert folder.name == "none_kv8" and checkpoints.num_bytes(folder) == checkpoints.num_bytes(tiny_model)
    assert json.loads((folder / "generation_config.json").read_text())["cache_config"] == {"backend": "fp8"}
    assert (tiny_model / "generation_config.json").read_bytes() == before
    assert checkpoints.load(folder)[0].generation_config.cache_implementation == "quantized"


def test_a_quantised_cache_holds_a_byte_a_number(tiny_model, tmp_path):
    numbers = 2 * 2 * 32  # layers, keys and values, hidden size
    plain = latency(Generator.load(tiny_model), [[5]])
    assert plain["kv_cache_bytes_per_token"] == numbers * 4
    small = latency(Generator.load(variant(tiny_model, tmp_path, scheme="none", kv_cache_bits=8)), [[5]])
    tokens = small["prefill_tokens"] + 8
    assert small["kv_cache_bytes_per_token"] == pytest.approx(numbers + 2 * 2 * 4 / tokens)  # and a scale a tensor


def test_answers_are_made_with_the_quantised_cache(tiny_model, tmp_path):
    generator = Generator.load(variant(tiny_model, tmp_path, scheme="int8_weight_only", kv_cache_bits=8))
    kinds = []
    generator.model.register_forward_hook(lambda *told: kinds.append(type(told[2].past_key_values).__name__))
    assert len(generator.generate([chat("a"), chat("bcd")], max_new_tokens=4)) == 2
    assert set(kinds) == {"QuantizedCache"}


def test_the_head_of_a_quantised_model_is_multiplied_once_for_all_prompts(tiny_model, tmp_path):
    import torch

    model, _ = checkpoints.load(variant(tiny_model, tmp_path, scheme="int8_weight_only"))
    ids = torch.arange(3, 19).reshape(4, 4)

    def products():
        with torch.inference_mode(), torch.profiler.profile() as seen:
            logits = model(input_ids=ids, logits_to_keep=1).logits
        return logits, [event.name for event in seen.events()].count("aten::bmm")

    logits, once = products()
    (given,) = model.get_output_embeddings()._forward_pre_hooks.values()
    model.get_output_embeddings()._forward_pre_hooks.clear()
    same, each = products()
    assert once == 0 and each == 1 and torch.allclose(logits, same, atol=1e-6)
    assert given(None, (torch.ones(2, 3, 4)[:, -1:],))[0].is_contiguous()
