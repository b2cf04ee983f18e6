"""What matters by weights and by chats, beside numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as t
from toy_tokenizers import tokenizer_for

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import importance, surgery

IDS = [3, 7, 1, 4, 9, 2]
SAID = [False, False, True, False, True, True]


def model(**changes):
    """Two layers of two groups of two heads, with random weights in 64 bits."""
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
    }
    config = t.Qwen2Config(**{**sizes, "num_hidden_layers": 2, "vocab_size": 12, **changes})
    torch.manual_seed(5)
    network = t.Qwen2ForCausalLM(config).double().eval()
    for weight in network.parameters():
        weight.data.normal_(0, 0.5)
    return network, surgery.widths(config)


def test_the_magnitude_of_all_that_goes_with_a_part(tmp_path):
    network, whole = model()
    for weight in network.parameters():
        weight.data.fill_(1)
    network.model.layers[1].mlp.gate_proj.weight.data[2] = 2
    network.model.layers[0].self_attn.v_proj.weight.data[2:] = 0
    network.model.layers[0].self_attn.v_proj.bias.data[2:] = 0
    network.save_pretrained(tmp_path)
    tokenizer_for("", eos="<|endoftext|>").save_pretrained(tmp_path)
    found = importance.of_weights(tmp_path, whole)
    # A channel: 8 inputs of gate and of up, 8 outputs of down. With a gate of 2 these 8 count 4 each.
    assert found.channels_LC[0].tolist() == pytest.approx([math.sqrt(24)] * 3)
    assert found.channels_LC[1].tolist() == pytest.approx([math.sqrt(24), math.sqrt(24), math.sqrt(48)])
    # A group: queries 4 x (8 + a bias), keys and values 2 x (8 + a bias) each, output 8 x 4: 104; without values 86.
    assert found.groups_LG[0].tolist() == pytest.approx([math.sqrt(104), math.sqrt(86)])
    assert found.groups_LG[1].tolist() == pytest.approx([math.sqrt(104)] * 2)
    assert found.layers_L is None
    kept = found.kept([1, 0], 1, 2)
    assert (kept.layers, kept.groups, kept.channels) == ([1, 0], [[0], [0]], [[0, 2], [0, 1]])


def test_a_part_matters_by_what_it_adds_to_the_stream():
    """A group and a channel alone: its norm is that of what the projection writes of it, over all tokens."""
    network, whole = model()
    rows = [(IDS, SAID), (IDS[:3], SAID[:3])]
    found = importance.of_rows(network, whole, rows, "activation")
    for number, layer in enumerate(network.model.layers):
        for last, sizes, told in (
            (layer.self_attn.o_proj, 4, found.groups_LG),
            (layer.mlp.down_proj, 1, found.channels_LC),
        ):
            read = []
            hook = last.register_forward_pre_hook(lambda module, given, read=read: read.append(given[0][0].detach()))
            for ids, _ in rows:
                network(torch.tensor([ids]))
            hook.remove()
            states = torch.cat(read)
            for part in range(last.in_features // sizes):
                place = slice(part * sizes, (part + 1) * sizes)
                added = states[:, place] @ last.weight[:, place].T
                assert float(told[number, part]) == pytest.approx(added.norm().item(), rel=1e-5)


def test_a_layer_that_changes_nothing_has_no_influence():
    network, whole = model()
    still, turned = network.model.layers
    still.self_attn.o_proj.weight.data.zero_()
    still.mlp.down_proj.weight.data.zero_()
    found = importance.of_rows(network, whole, [(IDS, SAID)], "activation")
    assert float(found.layers_L[0]) == pytest.approx(0, abs=1e-6)
    states = []
    turned.register_forward_hook(lambda module, given, result: states.extend([given[0][0], result[0]]))
    with torch.no_grad():
        network(torch.tensor([IDS]))
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(*states, strict=True)]
    assert float(found.layers_L[1]) == pytest.approx(1 - sum(cosines) / len(IDS), abs=1e-6) != 0
    assert found.best_layers(1) == [1] and found.best_layers(2) == [0, 1]


def test_taylor_is_the_slope_of_the_loss_along_a_part():
    """Beside central differences of the loss when a part hands on (1 ± h) of itself, a row at a time."""
    network, whole = model()
    rows = [(IDS, SAID), (IDS[::-1], SAID)]
    found = importance.of_rows(network, whole, rows, "taylor")

    def loss(ids, last, place, factor):
        def scaled(module, given):
            states = given[0].clone()
            states[..., place] *= factor
            return (states,)

        hook = last.register_forward_pre_hook(scaled)
        with torch.no_grad():
            nats = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        hook.remove()
        return -sum(float(nats[at - 1, token]) for at, token in enumerate(ids) if SAID[at]) / sum(SAID)

    h = 0.03  # norms are taken in 32 bits, so that smaller steps drown in rounding
    for told, last, place in (
        (found.groups_LG[1, 1], network.model.layers[1].self_attn.o_proj, slice(4, 8)),
        (found.channels_LC[0, 2], network.model.layers[0].mlp.down_proj, slice(2, 3)),
    ):
        slopes = [(loss(ids, last, place, 1 + h) - loss(ids, last, place, 1 - h)) / (2 * h) for ids, _ in rows]
        assert float(told) == pytest.approx(sum(map(abs, slopes)) / 2, rel=5e-3)
    assert all(weight.grad is None for weight in network.parameters())
    with pytest.raises(DataError, match="none of the calibration chats has a token that the assistant said"):
        importance.of_rows(network, whole, [(IDS, [False] * 6)], "taylor")


def test_norms_of_inputs():
    network, _ = model()
    found = importance.input_norms(network, [(IDS, SAID)])
    assert len(found) == 14 and "lm_head" not in found
    read = []
    network.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, given: read.append(given[0][0]))
    network(torch.tensor([IDS]))
    torch.testing.assert_close(found["model.layers.1.mlp.up_proj"].double(), read[0].norm(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["model.layers.1.mlp.up_proj"], found["model.layers.1.mlp.gate_proj"])
