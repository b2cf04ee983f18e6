"""The arithmetic of merging beside numbers computed by hand, and beside PEFT's."""

import math

import pytest
import torch

from bloomery.components.merging import methods

A, B = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([3.0, -2.0, 5.0])


def test_linear_is_the_weighted_mean():
    # (1·1 + 3·3) / 4, (1·2 - 3·2) / 4, (-3 + 15) / 4
    assert methods.linear([A, B], [1, 3]).tolist() == [2.5, -1.0, 3.0]
    assert methods.linear([A, B], [10, 30]).tolist() == [2.5, -1.0, 3.0]
    assert A.tolist() == [1.0, 2.0, -3.0]  # what is read is left as it is


def test_task_arithmetic_sums_and_takes_away():
    assert methods.summed([A, B], [2, -1]).tolist() == [-1.0, 6.0, -11.0]


def arced(t, first, second):
    dot = float(first @ second)
    return methods.summed([first, second], methods.arc(t, dot, (float(first @ first), float(second @ second))))


def test_slerp_goes_along_the_arc():
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = arced(0.5, east, north)
    assert half.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])  # linear would give 0.5, shorter by 30 %
    third = arced(1 / 3, east, north)
    assert third.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    # 60 degrees apart, lengths 2 and 1: sin(15°)/sin(60°) of the first and sin(45°)/sin(60°) of the second.
    second = torch.tensor([0.5, math.sqrt(0.75)])
    expected = [
        (2 * math.sin(math.pi / 12) + 0.5 * math.sin(math.pi / 4)) / math.sin(math.pi / 3),
        math.sqrt(0.75) * math.sin(math.pi / 4) / math.sin(math.pi / 3),
    ]
    assert arced(0.75, 2 * east, second).tolist() == pytest.approx(expected)
    assert arced(0.0, A, B).tolist() == pytest.approx(A.tolist())
    assert arced(1.0, A, B).tolist() == pytest.approx(B.tolist())


def test_slerp_of_parallel_opposite_and_zero_tensors_is_linear():
    assert arced(0.25, A, 2 * A).tolist() == pytest.approx([1.25, 2.5, -3.75])
    assert arced(0.25, A, -A).tolist() == pytest.approx([0.5, 1.0, -1.5])
    assert arced(0.25, torch.zeros(3), A).tolist() == pytest.approx([0.25, 0.5, -0.75])


@pytest.mark.parametrize(
    ("density", "expected"),
    [(0.2, [0, 0, 0, -9, 0]), (0.4, [0, -4, 0, -9, 0]), (0.6, [3, -4, 0, -9, 0]), (1.0, [3, -4, 1, -9, 0.5])],
)
def test_ties_keeps_the_largest_magnitudes(density, expected):
    values = torch.tensor([3.0, -4.0, 1.0, -9.0, 0.5])
    threshold = methods.trim_threshold(lambda: values.split(2), 5, density)
    assert methods.trimmed(values, threshold).tolist() == expected


def test_the_threshold_is_the_exact_one_in_whatever_parts():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-4
    for wanted in (1, 17, 5_000, 9_999, 10_000):
        exact = values.abs().sort(descending=True).values[wanted - 1].item()
        for size in (10_000, 999):
            assert methods.trim_threshold(lambda s=size: values.split(s), 10_000, wanted / 10_000) == exact
    assert methods.trim_threshold(lambda: [torch.zeros(5)], 5, 0.2) == 0.0
    alike = torch.tensor([2.0, -2.0, 2.0, 1.0])
    threshold = methods.trim_threshold(lambda: [alike], 4, 0.25)
    assert methods.trimmed(alike, threshold).tolist() == [2.0, -2.0, 2.0, 0.0]  # which of equals stays is no accident


def test_ties_elects_a_sign_and_averages_who_has_it():
    first = torch.tensor([4.0, 1.0, -2.0, 0.0, 0.0, 2.0])
    second = torch.tensor([2.0, -3.0, -4.0, 5.0, 0.0, -2.0])
    # Sums 6, -2, -6, 5, 0, 0: means of those with the sign; who was trimmed (0) does not count; 0 elects +.
    assert methods.elected([first, second], [1, 1]).tolist() == [3.0, -3.0, -3.0, 5.0, 0.0, 2.0]
    # 5 · 1 - 1 · 3 = 2 elects + now, and (5 · 4 + 1 · 2) / 6.
    assert methods.elected([first, second], [5, 1]).tolist()[:2] == pytest.approx([22 / 6, 1.0])


def test_dare_drops_at_random_and_rescales():
    ones = torch.ones(100_000)
    kept = methods.dropped(ones, 0.25, methods.generator(17, 0, "w"))
    assert set(kept.tolist()) == {0.0, 4.0}
    # The mean stays: four standard errors of sqrt(3 / 100,000).
    assert kept.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(3e-5))


def test_dare_draws_by_seed_model_and_tensor_and_not_by_parts():
    def drawn(seed, model, tensor, size=1_000):
        numbers = methods.generator(seed, model, tensor)
        return torch.cat([methods.dropped(part, 0.5, numbers) for part in torch.ones(1_000).split(size)])

    first = drawn(1, 0, "a")
    assert torch.equal(first, drawn(1, 0, "a")) and torch.equal(first, drawn(1, 0, "a", size=7))
    assert not any(torch.equal(first, other) for other in (drawn(2, 0, "a"), drawn(1, 1, "a"), drawn(1, 0, "b")))


def test_peft_merges_the_same_differences_to_the_same_numbers():
    from peft.utils import merge_utils

    numbers = torch.Generator().manual_seed(3)
    differences = [torch.randn(1_000, generator=numbers) for _ in range(3)]
    weights = torch.tensor([0.5, 0.25, 2.0])
    theirs = merge_utils.task_arithmetic(differences, weights)
    torch.testing.assert_close(methods.summed(differences, weights.tolist()), theirs)
    thresholds = [methods.trim_threshold(lambda d=d: [d], 1_000, 0.3) for d in differences]
    trimmed = [methods.trimmed(d, threshold) for d, threshold in zip(differences, thresholds, strict=True)]
    assert all(map(torch.equal, trimmed, [merge_utils.prune(d, 0.3, "magnitude") for d in differences]))
    # With equal weights: with others PEFT divides by the number of those that agree, which is no mean.
    theirs = merge_utils.ties(differences, torch.ones(3), density=0.3)
    torch.testing.assert_close(methods.elected(trimmed, [1, 1, 1]), theirs)
