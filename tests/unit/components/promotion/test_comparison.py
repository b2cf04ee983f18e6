"""Differences of hand-made scores, against values computed by hand and against the exact test."""

import math

import pytest
from scipy.stats import binom, t

from bloomery.components.promotion.comparison import binary_stderr, compare


def rows(scores, *, repeat=0, weights=None, split="test"):
    weights = weights or [1.0] * len(scores)
    return [
        {"split": split, "id": str(i), "score": float(s), "weight": float(w), "repeat": repeat}
        for i, (s, w) in enumerate(zip(scores, weights, strict=True))
    ]


def test_binary_scores_are_compared_with_half_a_pair_in_each_cell():
    found = compare(rows([1, 1, 1, 0, 0, 0, 1, 1]), rows([0, 0, 1, 1, 0, 0, 1, 1]))
    # 2 wins, 1 loss of 8: ((2 + 1 + 1) / 10 - (1 / 10) ** 2) / 10.
    assert found.difference == pytest.approx(1 / 8)
    assert found.stderr == pytest.approx(math.sqrt((0.4 - 0.01) / 10))
    assert found.correction == 1 / 8 and found.degrees_of_freedom == pytest.approx(7)
    assert found.p_above(0.0) == pytest.approx(0.5)  # what is left of one win after the correction is nothing
    assert found.lower(0.95) == pytest.approx(-t.ppf(0.95, 7) * found.stderr)


@pytest.mark.parametrize("losses", range(0, 25))
def test_an_improvement_is_seen_where_the_exact_test_sees_it_or_one_win_later(losses):
    def first(sees):
        return next(wins for wins in range(losses, 200) if sees(wins))

    exact = first(lambda wins: binom.sf(wins - 1, wins + losses, 0.5) < 0.05)
    ours = first(lambda wins: (wins - losses - 1) / 500 > t.ppf(0.95, 499) * binary_stderr(wins, losses, 500))
    assert exact <= ours <= exact + 1


def test_other_scores_are_compared_by_the_paired_t_test():
    found = compare(rows([0.5, 0.7, 0.9]), rows([0.4, 0.4, 0.7]))
    # Differences .1, .3, .2: mean .2, standard deviation .1.
    assert found.stderr == pytest.approx(0.1 / math.sqrt(3)) and found.correction == 0
    assert found.p_above(0.0) == pytest.approx(t.sf(0.2 / found.stderr, 2))
    assert found.p_below(0.0) == pytest.approx(1 - found.p_above(0.0))


def test_what_moves_all_prompts_together_is_counted_for_both_models():
    scores, others = [1, 1, 0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0, 1, 1]
    quiet = compare(rows(scores), rows(others))
    champion = rows(others) + rows([0] * 8, repeat=1) + rows([1] * 8, repeat=2)
    noisy = compare(rows(scores), champion)
    assert quiet.noise == 0 and noisy.difference == quiet.difference
    # Means .5, 0, 1 have variance .25 with 2 degrees of freedom. Apart from them each prompt is off by half an answer
    # in each direction ((+-.333, -+.167, -+.167), squares .1667): of the 8 in 64 parts, by 2: 8 * .1667 / 64 / 2.
    independent = 8 * (1 / 9 + 1 / 36 + 1 / 36) / 64 / 2
    assert noisy.noise == pytest.approx(0.5)
    common = 2 * (0.25 - independent)
    assert noisy.stderr == pytest.approx(math.sqrt(quiet.stderr**2 + common))
    sampling = quiet.stderr**2
    assert noisy.degrees_of_freedom == pytest.approx((sampling + common) ** 2 / (sampling**2 / 7 + common**2 / 2))
    # Where both repeated, what they say is pooled.
    both = compare(rows(scores) + rows(scores, repeat=1) + rows(scores, repeat=2), champion)
    assert both.noise == pytest.approx(math.sqrt(0.125))


def test_independent_flips_are_in_the_sampling_error_already():
    scores = [1, 1, 0, 0, 1, 0, 1, 0]
    flipped = rows(scores) + rows([0, 1, 0, 0, 1, 0, 1, 0], repeat=1) + rows([1, 1, 0, 1, 1, 0, 1, 0], repeat=2)
    found, quiet = compare(rows(scores[::-1]), flipped), compare(rows(scores[::-1]), rows(scores))
    assert found.noise > 0 and found.stderr == pytest.approx(quiet.stderr, rel=0.15)


def test_texts_count_by_their_tokens():
    found = compare(rows([-1.0, -2.0], weights=[30, 10]), rows([-1.5, -2.0], weights=[30, 10]))
    assert found.value == pytest.approx(-1.25) and found.baseline == pytest.approx(-1.625)
    assert found.difference == pytest.approx(0.375) and found.correction == 0


def test_prompts_that_one_model_alone_answered_are_counted():
    found = compare(rows([1, 1, 1]), rows([0, 1]) + rows([1], split="other"))
    assert (found.num_prompts, found.num_unpaired) == (2, 2)
    assert compare(rows([1]), rows([1], split="other")) is None


def test_one_prompt_shows_nothing():
    found = compare(rows([1]), rows([0]))
    assert found.p_above(0.0) == 1.0 and found.p_below(0.0) == 1.0 and found.lower(0.95) == -math.inf
