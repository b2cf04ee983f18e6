"""The learning rate in each step, beside values computed by hand and the trainers' own."""

import pytest

from bloomery.components.core.modelling.schedules import factor

HAND = {
    "cosine": {5: 1.0, 10: 0.75, 12: 0.5523, 20: 0.0},
    "linear": {5: 1.0, 8: 0.8, 20: 0.0},
    "constant_with_warmup": {5: 1.0, 20: 1.0},
    "constant_with_cooldown": {5: 1.0, 17: 1.0, 18.5: 0.5, 20: 0.0},  # the last fifth of 15 steps
    "step": {5: 1.0, 12: 1.0, 12.5: 0.1, 16.25: 0.01},  # half and three quarters of 15 steps
    "exponential": {5: 1.0, 12.5: 0.1, 20: 0.01},
}


@pytest.mark.parametrize("name", HAND)
def test_a_rate_after_five_steps_of_warm_up(name):
    assert [factor(name, step, steps=20, warmup=5) for step in range(5)] == [0, 0.2, 0.4, 0.6, 0.8]
    for step, expected in HAND[name].items():
        assert factor(name, step, steps=20, warmup=5) == pytest.approx(expected, abs=1e-4)


def test_one_cycle_is_torchs():
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=31)
    for step in range(31):
        found = factor("one_cycle", step, steps=31, warmup=5)
        assert found == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        if step < 30:
            theirs.step()


@pytest.mark.parametrize("name", ["cosine", "linear", "constant_with_warmup"])
def test_the_usual_three_are_those_of_transformers(name):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=17)
    for step in range(17):
        assert factor(name, step, steps=17, warmup=3) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
