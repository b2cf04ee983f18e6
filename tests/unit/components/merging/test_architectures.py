"""Architectures whose tensors and configs are written unlike Llama's, and how much memory a large model takes."""

import json
import resource
import threading
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from toy_tokenizers import tokenizer_for

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints, tensor_files
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.step import run

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{#<|user|><|assistant|>#}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
KINDS = {
    "gpt2": lambda ids: t.GPT2LMHeadModel(t.GPT2Config(**{"n_head": 2, **ids}, n_embd=32, n_layer=3, n_positions=64)),
    "gemma3": lambda ids: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**SIZES, num_hidden_layers=3, layer_types=SLIDING, sliding_window=8, **ids)
    ),
    "qwen3": lambda ids: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, num_hidden_layers=3, **ids)),
    "mixtral": lambda ids: t.MixtralForCausalLM(
        t.MixtralConfig(**SIZES, num_hidden_layers=3, num_local_experts=4, **ids)
    ),
}


def write(folder, kind, seed, **changes):
    tokenizer = tokenizer_for(TEMPLATE, eos="<|endoftext|>")
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    KINDS[kind]({"vocab_size": len(tokenizer), **ids, **changes}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifact.seal(folder, "model/1")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_architectures_are_merged_and_stacked(kind, tmp_path):
    first, second = (write(tmp_path / name, kind, seed) for seed, name in enumerate(("first", "second")))
    mean = MergingConfig.model_validate({"method": "linear", "models": [{"stage": "a"}, {"stage": "b"}]})
    run(mean, base_model=first, model=tmp_path / "mean", first=first, second=second)
    networks = [checkpoints.load(tmp_path / name)[0] for name in ("first", "second", "mean")]
    for one, other, merged in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(merged, (one + other) / 2)
    stacked = MergingConfig(method="depth_up_scaling", removed_layers=1)
    run(stacked, base_model=first, model=tmp_path / "deep")
    deep, tokenizer = checkpoints.load(tmp_path / "deep")
    assert deep.config.num_hidden_layers == 4
    if kind == "gemma3":
        assert deep.config.layer_types == [SLIDING[number] for number in (0, 1, 1, 2)]
    assert len(Generator(deep, tokenizer).generate([chat("colour of cup?")], max_new_tokens=3)) == 1
    # Layers 0 1 1 2 in place: the same as calling them so in the model itself.
    body = networks[0].get_decoder() if hasattr(networks[0], "get_decoder") else networks[0].base_model
    kept = body.h if kind == "gpt2" else body.layers
    copied = deep.get_decoder() if hasattr(deep, "get_decoder") else deep.base_model
    for layer, number in zip(copied.h if kind == "gpt2" else copied.layers, (0, 1, 1, 2), strict=True):
        for name, weight in layer.named_parameters():
            assert torch.equal(weight, kept[number].get_parameter(name))


def test_a_published_gpt2_is_the_same_model_with_other_names(tmp_path):
    """Its file has no prefix, and masks that are no weights."""
    ours, published = (write(tmp_path / name, "gpt2", seed) for seed, name in enumerate(("ours", "published")))
    held = {n.removeprefix("transformer."): w for n, w in load_file(published / "model.safetensors").items()}
    save_file({**held, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, published / "model.safetensors", {"format": "pt"})
    artifact.seal(published, "model/1")
    half = MergingConfig.model_validate({"method": "slerp", "t": 1, "models": [{"stage": "a"}, {"stage": "b"}]})
    run(half, base_model=ours, model=tmp_path / "merged", first=ours, second=published)
    merged, expected = load_file(tmp_path / "merged" / "model.safetensors"), held["h.1.mlp.c_fc.weight"]
    torch.testing.assert_close(merged["transformer.h.1.mlp.c_fc.weight"], expected)


def test_equal_shapes_that_compute_something_else_are_refused(tmp_path):
    first, second = write(tmp_path / "a", "gpt2", 0), write(tmp_path / "b", "gpt2", 0, n_head=4)
    config = MergingConfig.model_validate({"method": "linear", "models": [{"stage": "a"}, {"stage": "b"}]})
    with pytest.raises(ModelError, match="num_attention_heads is 4 in the stage b and 2 in the stage's own model"):
        run(config, base_model=first, model=tmp_path / "out", first=first, second=second)


class Peak(threading.Thread):
    """Bytes that this process has in memory at most, beyond what it had at first, looked at every 2 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.first = self.most = self.now()
        self.ended = threading.Event()

    def now(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def run(self):
        while not self.ended.wait(0.002):
            self.most = max(self.most, self.now())


def test_memory_is_that_of_parts_and_not_of_models(tiny_model, tmp_path):
    """Two models of 192 MiB are merged into a third in less memory than one of them, most of which is one tensor."""
    config = json.loads((tiny_model / "config.json").read_text())
    rows, width = 96 * 2**10, 512
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        settings = {**config, "vocab_size": rows, "hidden_size": width}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        parts = [torch.zeros(tensor_files.PART)] * (rows * width // tensor_files.PART)
        weights = tensor_files.Made("model.embed_tokens.weight", "F32", [rows, width], parts.copy)
        tensor_files.write(tmp_path / name, [weights], like=tiny_model)
    mean = MergingConfig.model_validate({"method": "linear", "models": [{"stage": "a"}, {"stage": "b"}]})
    folders = {"first": tmp_path / "a", "second": tmp_path / "b", "base_model": tmp_path / "base"}
    peak = Peak()
    peak.start()
    run(mean, model=tmp_path / "out", **folders)
    peak.ended.set()
    peak.join()
    assert 0 < peak.most - peak.first < 192 * 2**20
