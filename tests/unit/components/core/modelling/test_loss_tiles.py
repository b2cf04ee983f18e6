"""The loss by tiles is that of torch's own functions on all logits at once."""

import pytest
import torch
from trl.kernels import chunked_logprob

from bloomery.components.core.modelling import loss_tiles

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.mark.parametrize(("scale", "temperature", "cap"), [(1.0, 1.0, None), (0.5, 2.0, None), (1.0, 1.0, 3.0)])
def test_log_probabilities_gradients_and_measures_are_those_of_all_logits(monkeypatch, scale, temperature, cap):
    loss_tiles.install()
    loss_tiles.install()  # a second time changes nothing
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", 7)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(40, 8)
    weight[5] = weight[3]  # equal logits, of which the first is the top one
    weight.requires_grad_()
    targets = torch.arange(50) % 40
    given = (hidden, weight, None, targets, temperature, 16, cap, scale, OUTPUTS)
    found = chunked_logprob.ChunkedLogProbFunction.apply(*given)
    above = torch.linspace(0.1, 1, 50)
    gradients = torch.autograd.grad((found[0] * above).sum(), (hidden, weight))

    logits = hidden @ weight.T * scale
    logits = (logits if cap is None else cap * torch.tanh(logits / cap)) / temperature
    log_probs = logits.log_softmax(-1)
    chosen = log_probs[torch.arange(50), targets]
    expected = (
        chosen,
        -(log_probs.exp() * log_probs).sum(-1),
        (2 * log_probs).exp().sum(-1).log(),
        logits.mean(-1),
        torch.tensor([row.tolist().index(max(row.tolist())) for row in logits]) == targets,
    )
    torch.testing.assert_close(found, expected)
    assert 0 < int(found[4].sum()) < 50
    torch.testing.assert_close(gradients, torch.autograd.grad((chosen * above).sum(), (hidden, weight)))


def test_a_tile_of_16_bits_gets_its_gradient():
    loss_tiles.install()
    tile = torch.tensor([[0.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    one = torch.ones(1)
    flags = {"HAS_SOFTCAP": False, "HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": False, "BLOCK_SIZE": 1}
    log_z = one * torch.log(torch.tensor(4.0))
    loss_tiles.backward(tile, 4, torch.tensor([2]), log_z, one, one, one, 0, 4, 1.0, 1.0, 1.0, **flags)
    assert tile.tolist() == [[-0.25, -0.25, 0.75, -0.25]]
