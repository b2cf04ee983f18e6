"""What goes wrong quietly in reinforcement learning, named while it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bloomery.components.core.modelling import guards
from bloomery.components.core.modelling.guards import WINDOW
from bloomery.components.core.scoring.statistics import mean_stderr

VERIFIER = "rewards/verifier/mean"
"""TRL's name in its log for the mean of the reward that `Rewards.verifier` gives."""

NO_SPREAD = 0.9
"""Share of prompts whose answers are all worth the same from which little is learnt: such prompts have no gradient
(DAPO, arXiv 2503.14476, section 3.2). A reading aid of our own."""
CUT_SHORT = 0.25
"""Share of answers that reach the longest length from which it is named. A reading aid of our own."""


def callback(kl_budget: float) -> Any:
    """A trainer's callback that warns, once of each."""

    def look(log: Sequence[dict[str, float]]) -> dict[str, str]:
        history = steps_of(log)
        return {
            "spread": no_spread(history),
            "length": cut_short(history),
            "budget": over_budget(history, kl_budget),
            "verifier": against_verifier(history),
        }

    return guards.alarm(look)


def steps_of(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The entries of a trainer's log that tell of answers."""
    return [entry for entry in history if "reward" in entry]


def no_spread(history: Sequence[dict[str, float]]) -> str:
    """What is told where most prompts teach nothing; "" where they do."""
    last = history[-WINDOW:]
    share = mean(last, "frac_reward_zero_std")
    if len(last) < WINDOW or share < NO_SPREAD:
        return ""
    return (
        f"all answers to a prompt are worth the same, of {share:.0%} of the prompts (mean reward "
        f"{mean(last, 'reward'):.3g}): nothing is learnt from them. Take prompts that the model answers rightly now "
        "and then, raise num_generations or temperature, or end here if they are learnt"
    )


def cut_short(history: Sequence[dict[str, float]]) -> str:
    """What is told where many answers reach the longest length; "" where few do."""
    last = history[-WINDOW:]
    share = mean(last, "completions/clipped_ratio")
    if len(last) < WINDOW or share < CUT_SHORT:
        return ""
    return (
        f"{share:.0%} of the answers are cut at max_new_tokens: what they would have been worth is not known. Raise "
        "the task's max_new_tokens, or let rewards.length shorten them"
    )


def over_budget(history: Sequence[dict[str, float]], kl_budget: float) -> str:
    """What is told where the reward rises far away from the first model; "" where it does not."""
    first, last = history[:WINDOW], history[-WINDOW:]
    nats = mean(last, "kl") * mean(last, "completions/mean_length")
    if len(history) < 2 * WINDOW or nats <= kl_budget or mean(last, "reward") <= mean(first, "reward"):
        return ""
    return (
        f"the reward rose from {mean(first, 'reward'):.3g} to {mean(last, 'reward'):.3g} while the answers went "
        f"{nats:.3g} nats away from the first model, above kl_budget = {kl_budget:g}: read some of them, the reward "
        "may be hacked; a higher beta holds the model back"
    )


def against_verifier(history: Sequence[dict[str, float]]) -> str:
    """What is told where the reward rises while the verifier's score falls, by more than twice its standard error; ""
    where they go together."""
    first, last = history[:WINDOW], history[-WINDOW:]
    if len(history) < 2 * WINDOW or mean(last, "reward") <= mean(first, "reward"):
        return ""
    (before, error), (after, error_after) = (
        mean_stderr([entry.get(VERIFIER, 0.0) for entry in entries]) for entries in (first, last)
    )
    if before - after <= 2 * math.hypot(error, error_after):
        return ""
    return (
        f"the reward rose from {mean(first, 'reward'):.3g} to {mean(last, 'reward'):.3g} while the verifier's score "
        f"fell from {before:.3g} to {after:.3g}: what is rewarded is not what is right. Give rewards.verifier more "
        "weight, or train the reward model on answers like these"
    )


def mean(entries: Sequence[dict[str, float]], name: str) -> float:
    """Mean of a measure over the entries that have it; 0 of none."""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return sum(values) / len(values) if values else 0.0
