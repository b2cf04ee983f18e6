"""Four-bit weights: the numbers of a group by hand, and a checkpoint that loads as it was computed."""

import json

import pytest
import torch
from chats import write_chats

from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.quantisation import int4, rounding
from bloomery.components.quantisation.calibration import calibration_chats
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig


@pytest.fixture
def chats(tmp_path):
    return write_chats(tmp_path / "chats", [(f"say {word}", word) for word in ("ab", "cd", "ef")])


def test_a_group_on_the_grid_comes_back_exactly():
    weight = torch.tensor([[-7.5, 1.0, 2.0, 3.0, 4.0, -5.0, 6.0, 7.0], [0.0] * 8])
    assert rounding.scales(weight, 8)[0].item() == 1.0
    assert rounding.rounded(weight, 8)[0].tolist() == [-8.0, 1.0, 2.0, 3.0, 4.0, -5.0, 6.0, 7.0]
    assert rounding.rounded(weight, 8)[1].tolist() == [0.0] * 8


def test_a_lonely_large_weight_is_cut_short_for_the_others():
    weight = torch.tensor([[7.5] + [0.6] * 31])
    whole = weight.abs().amax() / 7.5
    plain = ((weight / whole).round() * whole - weight).square().sum()
    assert (rounding.rounded(weight, 32) - weight).square().sum() < plain
    assert rounding.scales(weight, 32).item() < whole


def test_a_packed_checkpoint_loads_as_the_rounded_weights(tiny_model, chats, tmp_path):
    config = QuantisationConfig(scheme="int4_weight_only")
    assert int4.export(config, tiny_model, chats, tmp_path / "q") == {}
    network, _ = checkpoints.load(tmp_path / "q")
    before, _ = checkpoints.load(tiny_model)
    layers = rounding.quantisable(before, embeddings=True)
    assert "lm_head" not in layers and "model.embed_tokens" in layers  # the head is tied
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.data = rounding.rounded(layer.weight.data, 32)
    ids = torch.arange(20)[None]
    assert torch.allclose(network(ids).logits, before(ids).logits, atol=0.02)  # the norms are rounded to 16 bits, too
    quantised = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]
    assert quantised["config_groups"]["group_0"]["weights"]["num_bits"] == 4


def test_embeddings_stay_whole_where_told(tiny_model, chats, tmp_path):
    int4.export(QuantisationConfig(scheme="int4_weight_only", embeddings=False), tiny_model, chats, tmp_path / "q")
    network, _ = checkpoints.load(tmp_path / "q")
    before, _ = checkpoints.load(tiny_model)
    assert torch.allclose(network.model.embed_tokens.weight, before.model.embed_tokens.weight, rtol=1 / 256)


def test_the_most_sensitive_layers_are_kept_first_and_as_few_as_needed(tiny_model, chats, tmp_path):
    def kept(tolerance):
        config = QuantisationConfig(scheme="mixed_int4", loss_tolerance=tolerance)
        generator = Generator.load(tiny_model)
        layers = rounding.quantisable(generator.model, embeddings=True)
        return int4.choose_kept(generator, layers, calibration_chats(chats, 3), config)

    strict, loose = kept(0.0), kept(10.0)
    assert loose["kept"] == []
    order = list(strict["sensitivity"])
    assert strict["kept"] == order[: len(strict["kept"])]
    values = list(strict["sensitivity"].values())
    assert values == sorted(values, reverse=True)
    assert strict["loss_quantised"] <= strict["loss"]
    config = QuantisationConfig(scheme="mixed_int4", loss_tolerance=0.0)
    int4.export(config, tiny_model, chats, tmp_path / "q")
    if strict["kept"]:
        ignored = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["ignore"]
        assert set(strict["kept"]) <= set(ignored)


def test_a_group_size_that_divides_no_row_is_told(tiny_model, chats, tmp_path):
    with pytest.raises(CannotRun, match="has 32 columns, no multiple of group_size 48"):
        int4.export(QuantisationConfig(scheme="int4_weight_only", group_size=48), tiny_model, chats, tmp_path / "q")
