"""Which single weights become zero."""

import pytest
import torch

from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.pruning import sparsity
from bloomery.components.pruning.config import PruningConfig


def test_the_lowest_of_each_output_go():
    scores = torch.tensor([[4.0, 1, 3, 2], [1, 9, 9, 9]])
    assert sparsity.kept(scores, 0.5).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert sparsity.kept(scores, 0.25).tolist() == [[True, False, True, True], [False, True, True, True]]
    assert sparsity.kept(scores, 0.4).sum() == 4  # 1.6 of 4, so 2


def test_two_of_four_that_stand_together_stay():
    scores = torch.tensor([[1.0, 2, 3, 4, 8, 7, 6, 5]])
    assert sparsity.kept(scores, "2:4").tolist() == [[False, False, True, True, True, True, False, False]]
    assert sparsity.kept(scores, "4:8").tolist() == [[False] * 4 + [True] * 4]
    with pytest.raises(ConfigError, match="pruning.sparsity: found 4:8; 6 inputs of a projection are no multiple of 8"):
        sparsity.kept(torch.ones(2, 6), "4:8")


def test_what_is_no_matrix_of_a_layer_stays_whole():
    assert sparsity.is_pruned("model.layers.0.mlp.down_proj.weight")
    for name in ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.input_layernorm.weight", "lm_head.weight"):
        assert not sparsity.is_pruned(name)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ["expected a smaller shape (num_hidden_layers, num_key_value_heads, intermediate_size) or `sparsity`"]),
        ({"sparsity": 0.5, "intermediate_size": 8}, ["for both, write two stages"]),
        ({"sparsity": 124}, ["sparsity: found 124; expected a share between 0 and 1", "'2:4' in quotes"]),
        ({"sparsity": "3:4"}, ["sparsity"]),
        ({"sparsity": 0.5, "importance": "taylor"}, ["importance: taylor tells of heads and channels"]),
        ({"intermediate_size": 8, "rewind": {"stage": "start"}}, ["rewind: takes the zeros of a sparse model"]),
    ],
)
def test_every_mistake_is_told(settings, told):
    with pytest.raises(ConfigError) as error:
        parse(PruningConfig, settings, where="p")
    assert all(part in str(error.value) for part in told), str(error.value)


def test_chats_are_needed_where_they_tell_what_matters():
    needed = {
        "activation": PruningConfig(intermediate_size=8),
        "taylor": PruningConfig(num_key_value_heads=1, importance="taylor"),
        "layers": PruningConfig(num_hidden_layers=1, importance="magnitude"),
        "wanda": PruningConfig(sparsity="2:4"),
    }
    assert all(config.needed_inputs == {"chats"} for config in needed.values())
    ticket = PruningConfig(sparsity=0.5, importance="magnitude", rewind=NamedModel(stage="start"))
    assert not ticket.needed_inputs and not PruningConfig(intermediate_size=8, importance="magnitude").needed_inputs


@pytest.mark.parametrize(("share", "told"), [(0.9, "all"), (0.1, "none")])
def test_a_share_that_leaves_all_or_nothing_is_refused(share, told):
    with pytest.raises(ConfigError, match=f"of the 4 inputs of a projection {told} would be zero"):
        sparsity.kept(torch.ones(2, 4), share)
