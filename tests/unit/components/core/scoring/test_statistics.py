"""Statistics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bloomery.components.core.scoring.statistics import (
    Z95,
    holm,
    interval,
    is_binary,
    lowest_difference,
    lowest_share,
    mcnemar,
    mean_stderr,
    paired_difference,
    too_few,
)


def test_mean_stderr_is_the_sample_deviation_over_the_root_of_n():
    # 1, 2, 3, 4: mean 2.5, squares 2.25 + .25 + .25 + 2.25 = 5, variance 5/3, error √(5/3/4)
    assert mean_stderr([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 12)))


def test_mean_stderr_weighted_by_tokens():
    # (1·1 + 3·3) / 4 = 2.5; residuals 1·(-1.5) and 3·.5: squares 2.25 + 2.25, times 2/1, root 3, over 4
    assert mean_stderr([1, 3], [1, 3]) == pytest.approx((2.5, 0.75))


def test_equal_weights_are_no_weights():
    scores = [0.1, 0.4, 0.9, 0.2]
    assert mean_stderr(scores, [7] * 4) == pytest.approx(mean_stderr(scores))


def test_one_score_has_no_error():
    mean, stderr = mean_stderr([0.5])
    assert mean == 0.5 and math.isnan(stderr)


@pytest.mark.parametrize(("scores", "weights"), [([], None), ([1.0], [0.0])])
def test_nothing_has_no_mean(scores, weights):
    with pytest.raises(ValueError, match="at least one score"):
        mean_stderr(scores, weights)


def test_wilson_interval():
    # 8 of 10, z = 1.96: the textbook values .490 and .943
    assert interval([1] * 8 + [0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # all of 10 right: the lower end is n / (n + z²)
    assert interval([1] * 10) == pytest.approx((10 / (10 + Z95**2), 1.0))


def test_interval_of_scores_that_are_not_binary():
    low, high = interval([1, 2, 3, 4])
    assert (low, high) == pytest.approx((2.5 - Z95 * math.sqrt(5 / 12), 2.5 + Z95 * math.sqrt(5 / 12)))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (6, 1, 2 * (1 + 7) / 128),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_is_twice_the_smaller_tail(wins, losses, p):
    a = [1] * wins + [0] * losses + [1, 1, 0]
    b = [0] * wins + [1] * losses + [1, 1, 0]
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(p)


def test_mcnemar_stays_exact_for_many_prompts():
    from scipy.stats import binomtest

    a, b = [1] * 2_600 + [0] * 2_400, [0] * 2_600 + [1] * 2_400
    assert mcnemar(a, b) == pytest.approx(binomtest(2_400, 5_000).pvalue, rel=1e-9)


def test_paired_difference_of_binary_scores():
    # differences 1, 1, 1, 0: mean .75, squares 3·.0625 + .5625 = .75, variance .25, error √(.25/4); p = 2/2³
    assert paired_difference([1, 1, 1, 0], [0, 0, 0, 0]) == pytest.approx((0.75, 0.25, 0.25))


def test_paired_difference_of_other_scores_is_a_t_test():
    # differences .1, .2, .3: mean .2, deviation .1, t = 2√3 at 2 degrees of freedom: p = 1 - t/√(t² + 2)
    difference, stderr, p = paired_difference([0.6, 0.8, 0.5], [0.5, 0.6, 0.2])
    t = 2 * math.sqrt(3)
    assert (difference, stderr, p) == pytest.approx((0.2, 0.1 / math.sqrt(3), 1 - t / math.sqrt(t * t + 2)))


def test_pairing_sees_what_the_means_hide():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard
    difference, stderr, p = paired_difference(a, b)
    assert stderr < mean_stderr(a)[1] / 10 and p < 1e-6 and difference == pytest.approx(0.1, abs=0.02)


def test_paired_difference_at_its_ends():
    assert paired_difference([0.5, 0.7], [0.5, 0.7]) == (0.0, 0.0, 1.0)
    assert paired_difference([1.5, 2.5], [0.5, 1.5]) == (1.0, 0.0, 0.0)
    difference, stderr, p = paired_difference([0.75], [0.5])
    assert difference == 0.25 and math.isnan(stderr) and p == 1.0
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1], [1, 0])


def test_few_questions_are_told_with_the_largest_error_of_a_score_on_them():
    """√(0.25 / 5) is 0.2236, √(0.25 / 29) is 0.0928."""
    assert too_few(5).startswith("n = 5, where a score has a standard error of up to 22 points")
    assert "up to 9 points" in too_few(29) and too_few(30) == ""


def test_is_binary():
    assert is_binary([0, 1, 1.0]) and not is_binary([0, 0.5])


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, none below the one before it
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []


def test_equal_scores_of_few_prompts_prove_little():
    # 9 pairs that are equal, one won and one lost: mean 0, variance 2/11; 1.645 · √(2/11/11) = .21147
    assert lowest_difference([0] * 9, [0] * 9, 0.95) == pytest.approx(-0.21147, abs=1e-5)
    # 1 lost of 198 and the two: mean -1/200, variance 3/200 - 1/200²
    scores = [1] * 197 + [0]
    expected = -1 / 200 - 1.6448536 * ((3 / 200 - 1 / 200**2) / 200) ** 0.5
    assert lowest_difference(scores, [1] * 198, 0.95) == pytest.approx(expected, abs=1e-8)


def test_the_lower_bound_of_a_share_is_wilsons():
    # all of n: n / (n + z²); none of n: 0
    assert lowest_share(25, 25, 0.95) == pytest.approx(25 / (25 + 1.6448536**2), abs=1e-7)
    assert lowest_share(0, 9, 0.95) == 0.0
    assert lowest_share(62, 64, 0.95) > 0.9 > lowest_share(61, 64, 0.95)
