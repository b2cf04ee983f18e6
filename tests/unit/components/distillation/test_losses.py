"""What a token is told, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.components.distillation import losses
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.distillation.losses import Comparison
from bloomery.components.distillation.teaching import prompt_of, unpadded, weighed

LOG = math.log
P, Q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
"""Of the teacher and of the student: sum P (log P - log Q) is 0.5 log 2 - 0.25 log 2."""


def test_divergences_by_hand():
    student_NV, teacher_NV = Q.log()[None] + 3, P.log()[None] - 1  # logits are probabilities but for a constant
    assert losses.divergence(student_NV, teacher_NV, "forward_kl").item() == pytest.approx(0.25 * LOG(2), abs=1e-6)
    assert losses.divergence(student_NV, teacher_NV, "reverse_kl").item() == pytest.approx(0.25 * LOG(2), abs=1e-6)
    # M = P / 4 + 3 Q / 4 = (5, 4, 7) / 16
    to_p = 0.5 * LOG(8 / 5) + 0.25 * LOG(4 / 7)
    to_q = 0.25 * LOG(4 / 5) + 0.5 * LOG(8 / 7)
    jsd = losses.divergence(student_NV, teacher_NV, "jsd", 0.25)
    assert jsd.item() == pytest.approx(0.25 * to_p + 0.75 * to_q, abs=1e-6)


def test_forward_and_reverse_are_not_the_same():
    certain, unsure = torch.tensor([[8.0, 0.0]]), torch.zeros(1, 2)
    # KL(unsure || certain) = log 1/2 - (log p + log q) / 2, where log p - log q = 8
    log_p = -LOG(1 + math.exp(-8))
    assert losses.divergence(certain, unsure, "forward_kl").item() == pytest.approx(-LOG(2) - (2 * log_p - 8) / 2)
    entropy = -(math.exp(log_p) * log_p + math.exp(log_p - 8) * (log_p - 8))
    assert losses.divergence(certain, unsure, "reverse_kl").item() == pytest.approx(LOG(2) - entropy, abs=1e-6)


def heads(vocabulary: int, width: int = 4, teacher_width: int = 6):
    torch.manual_seed(0)
    student = torch.nn.Linear(width, vocabulary, bias=False)
    teacher = torch.nn.Linear(teacher_width, vocabulary, bias=False).requires_grad_(False)
    states = torch.randn(7, width, requires_grad=True), torch.randn(7, teacher_width)
    return student, teacher, *states, torch.randint(vocabulary, (7,))


def test_a_temperature_divides_the_logits_and_its_square_keeps_the_gradient(monkeypatch):
    student, teacher, ours_NH, theirs_NH, chosen_N = heads(11)
    told, nats_N, agrees_N = Comparison(student, teacher, 11, temperature=2.0).by_token(ours_NH, theirs_NH, chosen_N)
    by_hand = torch.nn.functional.kl_div(
        (student(ours_NH) / 2).log_softmax(-1), (teacher(theirs_NH) / 2).softmax(-1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(told, 4 * by_hand)
    torch.testing.assert_close(nats_N, torch.nn.functional.cross_entropy(student(ours_NH), chosen_N, reduction="none"))
    assert agrees_N.tolist() == (student(ours_NH).argmax(-1) == teacher(theirs_NH).argmax(-1)).tolist()
    # Hot enough, the gradient on a logit is (z - v) / V of centred logits (1503.02531, equation 4).
    z, v = torch.tensor([[1.0, -1.0]], requires_grad=True), torch.tensor([[0.5, -0.5]])
    hot = Comparison(torch.nn.Identity(), torch.nn.Identity(), 2, temperature=1000.0)
    hot.by_token(z, v, torch.zeros(1, dtype=torch.long))[0].sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[0.25, -0.25]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_tiles_give_the_values_and_gradients_of_the_whole(monkeypatch, kind):
    student, teacher, ours_NH, theirs_NH, chosen_N = heads(11)
    found = []
    for tile in (2**26, 4 * 11 * 2, 1):  # all 7 tokens, 2 at a time, one
        monkeypatch.setattr(losses, "LOSS_TILE_BYTES", tile)
        comparison = Comparison(student, teacher, 11, kind, 0.3, 1.5)
        assert comparison.rows == {2**26: 2**26 // 44, 88: 2, 1: 1}[tile]
        told, nats_N, _ = comparison.by_token(ours_NH, theirs_NH, chosen_N)
        loss = (0.9 * told + 0.1 * nats_N).sum()
        found.append((told, *torch.autograd.grad(loss, (ours_NH, student.weight))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_logits_of_no_tokens_are_not_compared():
    """Of two models of one tokenizer the embeddings may be filled up to different widths."""
    student, _, ours_NH, _, chosen_N = heads(8)
    wider = torch.nn.Linear(4, 12, bias=False).requires_grad_(False)
    wider.weight[:8] = student.weight.detach()
    told, _, agrees_N = Comparison(student, wider, 8).by_token(ours_NH, ours_NH.detach(), chosen_N)
    assert told.abs().max() < 1e-6 and agrees_N.all()


def test_no_whole_logits_stand_in_memory():
    """A tile of 64 MiB is 128 tokens of 131,072: of 1,024, none larger is made forwards or backwards."""
    import torch.utils._python_dispatch as dispatch

    largest = 0

    class Watching(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            parts = made if isinstance(made, tuple) else (made,)
            largest = max([largest, *(part.numel() for part in parts if isinstance(part, torch.Tensor))])
            return made

    vocabulary, tokens = 2**17, 1_024
    with torch.device("meta"):
        student, teacher, states, _, _ = heads(vocabulary, 4, 4)
        ours_NH = torch.randn(tokens, 4, requires_grad=True)
        chosen_N = torch.zeros(tokens, dtype=torch.long)
    with Watching():
        told, nats_N, _ = Comparison(student, teacher, vocabulary).by_token(ours_NH, ours_NH.detach(), chosen_N)
        (told + nats_N).sum().backward()
    assert ours_NH.grad is not None and student.weight.grad is not None
    assert largest == 128 * vocabulary


def test_layers_are_compared_evenly_spaced():
    assert losses.layer_map(2, 4) == [1, 3]
    assert losses.layer_map(4, 12) == [2, 5, 8, 11]  # g(m) = 3 m of TinyBERT
    assert losses.layer_map(3, 3) == [0, 1, 2]
    assert losses.layer_map(4, 2) == [0, 0, 1, 1]
    assert losses.layer_map(1, 5) == [4]


def test_features_by_hand():
    student_NH, teacher_NH = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 5.0], [3.0, 0.0]])
    apart = losses.of_features(student_NH, teacher_NH, torch.nn.Identity())
    torch.testing.assert_close(apart, torch.tensor([1.0, 1 - 2**-0.5]))
    swap = torch.nn.Linear(2, 2, bias=False)
    swap.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(losses.of_features(student_NH, teacher_NH, swap), torch.tensor([0.0, 1 - 2**-0.5]))


def test_relation_heads_divide_both_widths():
    assert losses.relation_heads([768, 1024]) == 32
    assert losses.relation_heads([768, 768]) == 48
    assert losses.relation_heads([32, 48]) == 2
    assert losses.relation_heads([8, 12]) == 1


def test_relations_by_hand():
    """The second token of a row looks at itself and at the first: one head of width 2."""
    student_LD, teacher_LE = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    asked_N, one = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long)
    found = losses.of_relations(student_LD, teacher_LE, asked_N, one)
    # The teacher's relations are 1/2 and 1/2, the student's those of the logits 0 and 4 / sqrt 2.
    gap = 4 / math.sqrt(2)
    assert found.tolist() == pytest.approx([0.0, -LOG(2) - gap / 2 + LOG(1 + math.exp(gap))], abs=1e-6)
    # As a sequence of its own it sees itself alone.
    assert losses.of_relations(student_LD, teacher_LE, asked_N, torch.tensor([1, 2])).tolist() == [0.0, 0.0]


def test_relations_a_block_at_a_time_are_those_of_all(monkeypatch):
    torch.manual_seed(0)
    student_LD, teacher_LE = torch.randn(9, 32, requires_grad=True), torch.randn(9, 64)
    asked_N, one = torch.tensor([2, 3, 7, 8]), torch.zeros(9, dtype=torch.long)
    found = []
    for tile in (2**26, 1):
        monkeypatch.setattr(losses, "LOSS_TILE_BYTES", tile)
        told = losses.of_relations(student_LD, teacher_LE, asked_N, one)
        found.append((told, *torch.autograd.grad(told.sum(), student_LD)))
        assert told.isfinite().all() and found[-1][1].isfinite().all()
    torch.testing.assert_close(found[0], found[1])


def test_the_loss_is_the_weighted_sum():
    config = DistillationConfig(
        teacher={"stage": "big"}, learning_rate=1, epochs=1, max_length=8, alpha=0.75, features=2.0, attention=0.5
    )
    told = {name: torch.tensor([value]) for name, value in (("divergence", 4.0), ("nats", 8.0))}
    assert weighed(config.model_copy(update={"features": 0, "attention": 0}), told).item() == 5.0
    told |= {"features": torch.tensor([1.0]), "attention": torch.tensor([6.0]), "agreement": torch.tensor([True])}
    assert weighed(config, told).item() == 10.0


def test_a_row_is_asked_again_from_its_last_answer():
    assert prompt_of([1, 2, 3, 4, 5, 6], [-100, 2, -100, -100, 5, 6]) == [1, 2, 3, 4]
    assert prompt_of([1, 2, 3, 4], [-100, -100, 3, -100]) == [1, 2]
    assert prompt_of([1, 2, 3], [1, 2, 3]) == []
    batch = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "labels": torch.tensor([[-100, 2, 3], [-100, 5, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    assert unpadded(batch) == [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [4, 5], "labels": [-100, 5]},
    ]
