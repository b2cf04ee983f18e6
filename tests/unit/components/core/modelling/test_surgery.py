"""Sub-networks beside the whole model in which what they lack is zero, of each layout that is known."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from toy_tokenizers import tokenizer_for

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, surgery, tensor_files
from bloomery.components.core.modelling.surgery import Kept

SIZES = {"hidden_size": 32, "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS = {
    "llama": lambda ids: t.LlamaConfig(**SIZES, **ids, attention_bias=True, mlp_bias=True),
    "mistral": lambda ids: t.MistralConfig(**SIZES, **ids, head_dim=16, sliding_window=4),
    "qwen2": lambda ids: t.Qwen2Config(**SIZES, **ids),
    "qwen3": lambda ids: t.Qwen3Config(**SIZES, **ids, head_dim=16),
    "smollm3": lambda ids: t.SmolLM3Config(**SIZES, **ids, no_rope_layer_interval=2),
    "granite": lambda ids: t.GraniteConfig(**SIZES, **ids, attention_multiplier=0.3, residual_multiplier=0.5),
    "gemma": lambda ids: t.GemmaConfig(**SIZES, **ids, head_dim=16),
    "gemma2": lambda ids: t.Gemma2Config(**SIZES, **ids, head_dim=16, sliding_window=4, layer_types=SLIDING),
    "gemma3_text": lambda ids: t.Gemma3TextConfig(**SIZES, **ids, head_dim=16, sliding_window=4, layer_types=SLIDING),
}
KEPT = Kept(layers=[0, 2], groups=[[1], [0]], channels=[[0, 2, 3, 7, 11], [1, 2, 4, 8, 9]])
IDS_1L = torch.tensor([[5, 9, 11, 3, 8, 40, 41]])


def write(folder, kind, **changes):
    """A model of three layers with random weights, biases and norms, in 64 bits and in shards."""
    tokenizer = tokenizer_for("", eos="<|endoftext|>")
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = KINDS[kind]({"num_hidden_layers": 3, "vocab_size": len(tokenizer), **ids, **changes})
    torch.manual_seed(3)
    network = t.AutoModelForCausalLM.from_config(config).double()
    for weight in network.parameters():
        weight.data.normal_(0, 0.3)
    network.save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    artifact.seal(folder, "model/1")
    return folder


def without(network, kept):
    """The logits of the whole model where what `kept` leaves out hands on zeros, and layers what they were given."""
    size = surgery.widths(network.config).of_group
    for number, layer in enumerate(network.model.layers):
        if number not in kept.layers:
            layer.register_forward_hook(lambda module, given, result: given[0])
            continue
        place = kept.layers.index(number)
        heads = [group * size + at for group in kept.groups[place] for at in range(size)]
        for last, stays in ((layer.self_attn.o_proj, heads), (layer.mlp.down_proj, kept.channels[place])):
            mask = torch.zeros(last.in_features, dtype=torch.float64)
            mask[stays] = 1
            last.register_forward_pre_hook(lambda module, given, mask=mask: (given[0] * mask,))
    return logits(network)


def logits(network):
    with torch.no_grad():
        return network(IDS_1L, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_as_if_it_were_zero(kind, tmp_path):
    whole = write(tmp_path / "whole", kind)
    assert kind in surgery.KINDS and len(list(whole.glob("*.safetensors"))) > 1
    surgery.write(whole, KEPT, tmp_path / "small")
    artifact.seal(tmp_path / "small", "model/1")
    size = surgery.num_bytes(tensor_files.stored(whole), surgery.widths(checkpoints.load_config(whole)), 2, 1, 5)
    assert size == checkpoints.num_bytes(tmp_path / "small")
    network, _ = checkpoints.load(whole)
    cut, before = surgery.network(network, KEPT), logits(network)
    expected = without(network, KEPT)
    assert (before - expected).abs().max() > 0.1  # so that it is seen
    small = t.AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto")
    assert small.dtype == torch.float64
    for one in (small, cut):
        torch.testing.assert_close(logits(one), expected, rtol=0, atol=1e-9)
    for name, weight in cut.state_dict().items():
        assert torch.equal(weight, small.state_dict()[name]), name
    shape = [getattr(small.config, key) for key in (*list(SIZES)[1:], "head_dim", "num_hidden_layers")]
    assert shape == [5, 2, 1, surgery.widths(network.config).head_size, 2]
    if kind in ("gemma2", "gemma3_text"):
        assert small.config.layer_types == ["sliding_attention", "sliding_attention"]
    if kind == "smollm3":
        assert (network.config.no_rope_layers, small.config.no_rope_layers) == ([1, 0, 1], [1, 1])
    checkpoints.check(tmp_path / "small", to_train=True, has_chats=False)


def test_all_of_a_model_is_that_model(tmp_path):
    whole, _ = checkpoints.load(write(tmp_path / "whole", "gemma"))
    same = surgery.network(whole, Kept(range(3), [range(2)] * 3, [range(12)] * 3))
    assert torch.equal(logits(same), logits(whole))
    assert same.lm_head.weight is same.model.embed_tokens.weight


def test_an_unknown_layout_and_shapes_that_cannot_be_are_refused(tmp_path):
    other = tmp_path / "other"
    tokenizer = tokenizer_for("", eos="<|endoftext|>")
    t.GPT2LMHeadModel(t.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=len(tokenizer))).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match="pruning: the layout of gpt2 is not known; expected one of llama, mistral"):
        surgery.opened(other, "pruning")
    llama = KINDS["llama"]({"num_hidden_layers": 3})
    assert surgery.checked("p", llama, groups=1) == (3, 1, 2, 8, 12)
    with pytest.raises(ConfigError, match="p.num_hidden_layers: found 4; the model has 3, expected as many or fewer"):
        surgery.checked("p", llama, layers=4)
    wide = t.LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, head_dim=8)
    with pytest.raises(ConfigError, match="found 3, with 3 query heads; llama wants .* expected one of 1, 2$"):
        surgery.checked("p", wide, groups=3)
    assert surgery.checked("p", t.Qwen3Config(**{**SIZES, "num_key_value_heads": 4}, head_dim=8), groups=3).heads == 3


def test_a_checkpoint_whose_tensors_are_not_those_of_its_config_is_refused(tmp_path):
    whole = write(tmp_path / "whole", "llama")
    config = checkpoints.load_config(whole)
    config.intermediate_size = 16
    config.save_pretrained(whole)
    with pytest.raises(ModelError, match=r"15 have another shape: .*down_proj.weight \(\[32, 12\] instead of"):
        surgery.opened(whole, "pruning")
