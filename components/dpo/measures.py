"""What a preference optimisation did to answers that it has not seen, and the alarm while it goes on."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any

from bloomery.components.core.modelling import guards
from bloomery.components.core.modelling.guards import WINDOW
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.core.modelling.preference_pairs import Pair
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.losses import answer, nats

logger = logging.getLogger(__name__)

Likelihoods = list[tuple[float | None, float | None]]
"""(chosen, rejected) log-likelihoods in nats of the answers to each prompt, ends included; None: there is none."""


def answer_likelihoods(network: Any, pairs: Sequence[Pair], name: str = "") -> Likelihoods:
    """The log-likelihoods of the answers of `pairs` under `network`, given their prompts; `name` as in `nats`."""
    numbers = [number for number in range(2 * len(pairs)) if answer(pairs, number)[1]]
    found = nats(network, Lazily(lambda at: answer(pairs, numbers[at]), len(numbers)), name)
    told: list[float | None] = [None] * (2 * len(pairs))
    for number, value in zip(numbers, found, strict=True):
        told[number] = value
    return list(zip(told[::2], told[1::2], strict=True))


def compared(pairs: Sequence[Pair], before: Likelihoods, after: Likelihoods) -> dict[str, float]:
    """What changed on `pairs`; for what there is no answer, no measure.

    chosen, rejected (mean log-likelihood of such answers, in nats), margin (difference of the two), accuracy (share of
    pairs whose chosen answer is the likelier), each with _before and _after; chosen_change (mean, in nats an answer)
    and chosen_change_per_token; kl (mean `divergence` of all answers); length_correlation (of the implicit reward of
    an answer, the change of its log-likelihood, with its number of tokens: Pearson's, over all answers).
    """
    told: dict[str, float] = {}
    for name, found in (("before", before), ("after", after)):
        sides = ([pair[side] for pair in found if pair[side] is not None] for side in (0, 1))
        chosen, rejected = (_mean(side) for side in sides)
        whole = [float(c > r) for c, r in found if c is not None and r is not None]
        measured = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected, "accuracy": _mean(whole)}
        told |= {f"{key}_{name}": value for key, value in measured.items()}
    lengths, changes, is_chosen = [], [], []
    for pair, old, new in zip(pairs, before, after, strict=True):
        for side, own in enumerate((pair.chosen, pair.rejected)):
            if own:
                lengths.append(len(own))
                changes.append(new[side] - old[side])  # type: ignore[operator]
                is_chosen.append(side == 0)
    chosen = [(change, length) for change, length, good in zip(changes, lengths, is_chosen, strict=True) if good]
    told |= {
        "chosen_change": _mean([change for change, _ in chosen]),
        "chosen_change_per_token": _mean([change / length for change, length in chosen]),
        "kl": _mean([divergence(change, length) for change, length in zip(changes, lengths, strict=True)]),
        "length_correlation": _correlation(changes, lengths),
    }
    return {name: value for name, value in told.items() if not math.isnan(value)}


def divergence(change: float, length: int) -> float:
    """What an answer of `length` tokens tells of the divergence from the reference, in nats an answer, when its
    log-likelihood changed by `change` nats: never below 0.

    The estimator k3 (Schulman, 'Approximating KL divergence', 2020) on the mean log-ratio of a token, times the tokens;
    for an answer that became likelier as a sample of the model, for one that became less likely as a sample of the
    reference. It is an estimate from below: k3 of the other direction is larger, and by convexity so is that of the
    tokens one by one. The answers are those of the pairs, not drawn anew.
    """
    ratio = abs(change) / length
    return length * (math.expm1(-ratio) + ratio)


def hacking(
    config: DpoConfig, margins: Sequence[float], changes: Sequence[float], kls: Sequence[float]
) -> dict[str, str]:
    """What is told, by its kind, of a reward that grows for the wrong reason; nothing of one that does not.

    `margins` are the growth of the margin, in any unit, `changes` those of the chosen log-likelihood, in nats a token,
    and `kls` estimates of the divergence, in nats an answer, each of the last logged intervals.
    """
    found = {}
    if margins and changes and (margin := _mean(margins)) > 0 and (change := _mean(changes)) < -config.max_chosen_loss:
        found["reward"] = (
            f"the reward rises (margin {margin:+.3g}) while the chosen answers become less likely: {change:.3g} nats "
            f"a token, and dpo.max_chosen_loss is {config.max_chosen_loss:g}; raise sft_weight or lower "
            "learning_rate"
        )
    if config.max_kl is not None and kls and (kl := _mean(kls)) > config.max_kl:
        found["kl"] = (
            f"the model is {kl:.3g} nats an answer away from the one that training began with, and dpo.max_kl is "
            f"{config.max_kl:g}; stop earlier or lower learning_rate"
        )
    return found


def alarm(config: DpoConfig) -> Any:
    """The trainer's callback that warns of reward hacking as soon as it shows, once of each kind."""

    def look(history: Sequence[dict[str, float]]) -> dict[str, str]:
        names = ("rewards/margins", "chosen_change", "reference_kl")
        curves = [[entry[name] for entry in history if name in entry] for name in names]
        return hacking(config, *(curve[-WINDOW:] if len(curve) >= WINDOW else [] for curve in curves))

    return guards.alarm(look)


def warn(config: DpoConfig, told: dict[str, float]) -> None:
    """The same alarm on what was measured on the held-out answers in the end, `told` being that of `compared`."""
    if "chosen_change_per_token" in told and "margin_after" in told:
        grown = told["margin_after"] - told["margin_before"]
        for line in hacking(config, [grown], [told["chosen_change_per_token"]], [told["kl"]]).values():
            logger.warning("on the held-out answers %s", line)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _correlation(values: Sequence[float], lengths: Sequence[int]) -> float:
    if len(set(values)) < 2 or len(set(lengths)) < 2:
        return math.nan
    return statistics.correlation(values, lengths)
