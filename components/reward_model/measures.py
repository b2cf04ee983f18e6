"""What is told of a reward model: how often and how far it agrees with what it has not learnt from, and how much of
that is length."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

from bloomery.components.reward_model.scores import Answer

logger = logging.getLogger(__name__)


def of_pairs(margins: Sequence[float], longer: Sequence[float]) -> dict[str, float]:
    """Of pairs, each with what its chosen answer scores above the other and how many tokens longer it is: accuracy,
    accuracy_by_length and length_correlation."""
    signs = [sum(length > 0 for length in longer), sum(length < 0 for length in longer)]
    ties = len(longer) - sum(signs)
    return {
        "accuracy": sum(margin > 0 for margin in margins) / len(margins),
        "accuracy_by_length": (max(signs) + ties / 2) / len(longer),
        "length_correlation": uncentred_correlation(margins, longer),
    }


def of_scores(found: Sequence[float], answers: Sequence[Answer]) -> dict[str, float]:
    """Of answers, each with the score that was found and its own: spearman, kendall, spearman_by_length and
    length_correlation; and of the pairs among them that answer one prompt and differ in score, pairs_held_out, accuracy
    and accuracy_by_length. Nothing of answers whose scores are all the same."""
    from scipy.stats import kendalltau, spearmanr

    given, lengths = [answer.score for answer in answers], [float(answer.length) for answer in answers]
    if len(set(given)) < 2:
        return {}
    by_length = abs(spearmanr(lengths, given).statistic) if len(set(lengths)) > 1 else 0.0
    varies = len(set(found)) > 1  # else no rank of it is known
    told = {
        "spearman": float(spearmanr(found, given).statistic) if varies else 0.0,
        "kendall": float(kendalltau(found, given).statistic) if varies else 0.0,
        "spearman_by_length": float(by_length),
        "length_correlation": _correlation(found, lengths),
    }
    margins, longer = [], []
    by_prompt: dict[str, list[tuple[float, Answer]]] = {}
    for score, answer in zip(found, answers, strict=True):
        by_prompt.setdefault(answer.asked, []).append((score, answer))
    for (one, first), (other, second) in itertools.chain.from_iterable(
        itertools.combinations(group, 2) for group in by_prompt.values()
    ):
        if sign := (first.score > second.score) - (first.score < second.score):
            margins.append(sign * (one - other))
            longer.append(float(sign * (first.length - second.length)))
    if margins:
        pairs = of_pairs(margins, longer)
        told |= {name: pairs[name] for name in ("accuracy", "accuracy_by_length")}
        told["pairs_held_out"] = float(len(margins))
    return told


FEW = 10
"""Held-out pairs, or scored answers, below which nothing is said of what the model has learnt. A reading aid."""


def warn(told: dict[str, float], num_held_out: int) -> None:
    """Warn where length says as much as the model, and the model follows it; or where too few are held out to say."""
    if num_held_out < FEW:
        told_of = "%d held out: what is told of them says little; give more rows, or a higher validation_share"
        logger.warning(told_of, num_held_out)
        return
    measure = "spearman" if "spearman" in told else "accuracy"
    own, by_length, correlation = told[measure], told[f"{measure}_by_length"], told["length_correlation"]
    if own <= by_length and abs(correlation) > 0.5:
        logger.warning(
            "the reward model knows little but length: on the %d that were held out its %s is %.2f, and that of the "
            "length of the answers alone %.2f; what is trained against it will learn to write %s answers (arXiv "
            "2310.03716). Balance the lengths of what it learns from",
            num_held_out,
            {"accuracy": "share of right pairs", "spearman": "rank correlation"}[measure],
            own,
            by_length,
            "longer" if correlation > 0 else "shorter",
        )


def uncentred_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Σab / √(Σa² Σb²): that of differences within pairs, whose sign depends on which of the two is named first; 0
    where one side is all 0."""
    norm = math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
    return sum(a * b for a, b in zip(left, right, strict=True)) / norm if norm else 0.0


def _correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's, 0 where one side is all the same."""
    means = (sum(left) / len(left), sum(right) / len(right))
    return uncentred_correlation([value - means[0] for value in left], [value - means[1] for value in right])
