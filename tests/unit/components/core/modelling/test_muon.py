import torch

from bloomery.components.core.modelling.muon import Muon, orthogonalised


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(6, 4)
        self.hidden = torch.nn.Linear(4, 8)
        self.twin = torch.nn.Linear(4, 8, bias=False)
        self.head = torch.nn.Linear(4, 6, bias=False)

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head


def test_singular_values_of_a_step_are_near_one_whatever_those_of_the_gradient():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(8, 4))[0], torch.linalg.qr(torch.randn(4, 4))[0]
    matrix = left @ torch.diag(torch.tensor([100.0, 10.0, 5.0, 3.0])) @ right
    for batch in (torch.stack([matrix, 3 * matrix]), torch.stack([matrix.T, matrix.T])):
        values = torch.linalg.svdvals(orthogonalised(batch))
        assert values.min() > 0.6 and values.max() < 1.3
    # The directions are kept: U V^T, the polar factor of the gradient, is what comes out.
    polar = left @ right
    assert torch.nn.functional.cosine_similarity(orthogonalised(matrix[None]).flatten(), polar.flatten(), 0) > 0.95


def test_hidden_matrices_take_muons_step_and_the_others_adams():
    torch.manual_seed(0)
    network, learning_rate = Network(), 0.01
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = Muon(network, learning_rate, weight_decay=0.0)
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    optimizer.step()
    moved = {name: weight.detach() - before[name] for name, weight in network.named_parameters()}
    # Adam's first step is the learning rate against the sign of every gradient.
    for name in ("embed.weight", "hidden.bias", "head.weight"):
        assert torch.allclose(moved[name], -learning_rate * gradients[name].sign(), atol=1e-5), name
    # Muon's is .2 sqrt(8) times the learning rate along the orthogonalised gradient, whatever the gradient's size.
    for name in ("hidden.weight", "twin.weight"):
        expected = -learning_rate * 0.2 * 8**0.5 * orthogonalised(5 * gradients[name][None])[0]
        assert torch.allclose(moved[name], expected, atol=1e-5), name


def test_a_frozen_matrix_and_one_without_gradient_stay_and_weight_decay_shrinks_the_rest():
    network = Network()
    network.hidden.weight.requires_grad_(False)
    optimizer = Muon(network, 0.1, weight_decay=0.5)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    network.twin.weight.grad = torch.zeros_like(network.twin.weight)
    optimizer.step()
    assert torch.equal(network.hidden.weight, before["hidden.weight"])
    assert torch.equal(network.embed.weight, before["embed.weight"])
    assert torch.allclose(network.twin.weight, before["twin.weight"] * (1 - 0.1 * 0.5))
