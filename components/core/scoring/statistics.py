"""How sure a score is: means with their errors, intervals, and paired tests of two models.

A comparison is paired, because two models that answer the same prompts agree on the easy and on the hopeless
ones: the error of the mean of the differences is then smaller than that of the difference of the means
(Miller, Adding Error Bars to Evals, arXiv:2411.00640).

Every function takes one-dimensional arrays, one entry a prompt. `weights` are the scored tokens of perplexity
tasks, where a score is a mean per token; without them, prompts count alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution: half the width of a 95 % interval, in standard errors."""

FEW = 30
"""Questions below which a score is warned of. A reading aid: with 30 its standard error is 9 points at most."""

Numbers = Sequence[float] | np.ndarray


def too_few(num_questions: int) -> str:
    """What is told of a score on so few questions; "" where they are enough. Scores in [0, 1] vary most where half of
    them are 0 and half are 1: the standard error of their mean is then √(0.25 / n)."""
    if num_questions >= FEW:
        return ""
    return (
        f"n = {num_questions}, where a score has a standard error of up to "
        f"{100 * math.sqrt(0.25 / num_questions):.0f} points; give {FEW} questions or more, and read the answers"
    )


def mean_stderr(scores: Numbers, weights: Numbers | None = None) -> tuple[float, float]:
    """(mean, standard error of the mean) of `scores`; the error of a single score is unknown: NaN.

    Weighted, this is the ratio estimate Σwx / Σw with its linearised error (Cochran, Sampling Techniques, 3rd
    edition, chapter 6); unweighted it becomes s / √n with n - 1 in the variance.
    Raises: ValueError if there is no score, or no weight.
    """
    x, w = np.asarray(scores, float), _weights(scores, weights)
    if x.size == 0 or w.sum() <= 0:
        raise ValueError("a mean needs at least one score of positive weight")
    mean = float((w * x).sum() / w.sum())
    if x.size == 1:
        return mean, math.nan
    squares = float(((w * (x - mean)) ** 2).sum()) * x.size / (x.size - 1)
    return mean, math.sqrt(squares) / float(w.sum())


def interval(scores: Numbers, weights: Numbers | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean of `scores`.

    For 0/1 scores Wilson's, which stays inside [0, 1] and has a width where all answers are right or all
    wrong (Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16(2),
    2001); else mean ± 1.96 errors.
    Raises: ValueError as `mean_stderr`.
    """
    mean, stderr = mean_stderr(scores, weights)
    if weights is not None or not is_binary(scores):
        return mean - Z95 * stderr, mean + Z95 * stderr
    n, z2 = len(scores), Z95**2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(a: Numbers, b: Numbers) -> float:
    """Two-sided exact p-value that two models, with 0/1 scores on the same prompts, are equally good.

    Only the prompts on which they differ speak: under the hypothesis each is won with probability one half,
    so p is twice the smaller binomial tail, at most 1 (McNemar, Psychometrika 12, 1947, in its exact form).
    Raises: ValueError if the lengths differ.
    """
    x, y = _pair(a, b)
    wins, losses = int((x > y).sum()), int((x < y).sum())
    differing = wins + losses
    term, tail = 1, 1  # binomial coefficients as whole numbers: no rounding, at any number of prompts
    for i in range(min(wins, losses)):
        term = term * (differing - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**differing)


def paired_difference(a: Numbers, b: Numbers, weights: Numbers | None = None) -> tuple[float, float, float]:
    """(mean of a - b, its standard error, two-sided p-value) of two models on the same prompts, in order.

    The p-value is McNemar's for 0/1 scores, else that of the paired t-test (Student, Biometrika 6, 1908).
    With a single prompt the error is NaN and p is 1.
    Raises: ValueError as `mean_stderr`, or if the lengths differ.
    """
    x, y = _pair(a, b)
    difference, stderr = mean_stderr(x - y, weights)
    if weights is None and is_binary(x) and is_binary(y):
        return difference, stderr, mcnemar(x, y)
    if x.size == 1 or difference == 0:
        return difference, stderr, 1.0
    if stderr == 0:
        return difference, stderr, 0.0
    from scipy.special import stdtr

    return difference, stderr, float(2 * stdtr(x.size - 1, -abs(difference) / stderr))


def lowest_difference(a: Numbers, b: Numbers, confidence: float) -> float:
    """The one-sided lower bound, at `confidence`, of the mean of a - b for scores in [0, 1] of the same prompts.

    Two pairs are added, one won and one lost whole, so that few prompts on which the models are equal are no proof
    that they always are: with none won or lost the bound at 95 % is -21 points of 9 prompts, -1.2 of 200 (Bonett and
    Price, Journal of Educational and Behavioral Statistics 37, 2012, recommended for proportions by Fagerland,
    Lydersen and Laake, Statistics in Medicine 33, 2014).
    Raises: ValueError if the lengths differ.
    """
    x, y = _pair(a, b)
    differences = np.append(x - y, (1.0, -1.0))
    return float(differences.mean()) - NormalDist().inv_cdf(confidence) * float(differences.std()) / math.sqrt(
        differences.size
    )


def lowest_share(hits: int, n: int, confidence: float) -> float:
    """The one-sided lower bound, at `confidence`, of a share of which `hits` of `n` were seen: Wilson's."""
    z = NormalDist().inv_cdf(confidence)
    share = hits / n
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, (share + z * z / (2 * n) - half) / (1 + z * z / n))


def holm(p_values: Numbers) -> list[float]:
    """`p_values` adjusted for being that many: the chance of any false finding below `a` is at most `a`.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may be smaller than the one before it, or
    larger than 1 (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979). It needs no independence.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted.tolist()


def is_binary(scores: Numbers) -> bool:
    """True if every score is 0 or 1."""
    return bool(np.isin(np.asarray(scores, float), (0.0, 1.0)).all())


def _weights(scores: Numbers, weights: Numbers | None) -> np.ndarray:
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    if w.shape != (len(scores),):
        raise ValueError(f"{len(scores)} scores but {w.size} weights")
    return w


def _pair(a: Numbers, b: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape:
        raise ValueError(f"{x.size} scores against {y.size}: pairs need the same prompts, in order")
    return x, y
