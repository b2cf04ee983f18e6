"""The report's part on trainings: their curves in words, what the guards found, and what was trained on."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from bloomery.pipelines import charts

CHANGE_FRACTION = 0.02
"""Rise over the lowest validation loss, or fall in the last third, that is called over- or under-fitting.

A reading aid of our own, in parts of the loss: smaller changes are hard to see in the picture as well."""
WITHOUT_NATS = ("dpo", "reward_model", "grpo")
"""Steps whose loss is none of tokens."""
LEFT_OUT = {
    "too_long": "too long",
    "without_loss": "without a token to train",
    "end_inside": "with an end of a turn in their text",
    "dropped_identical": "of two answers that are the same",
    "dropped_empty": "without an answer",
    "dropped_unpaired": "of one answer",
    "dropped_scored": "of a score",
    "dropped_end_inside": "with an end of a turn in their text",
}
"""Measures of a training that count rows it did not learn from, in words."""


def read(finished: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every stage that recorded a loss: its chart, what the curves say, what the guards found, the first row that
    was trained on, and charts of perplexity by position."""
    found = []
    for stage, event in finished.items():
        train, validation = (
            [(entry["step"], entry[key]) for entry in event["history"] if math.isfinite(entry.get(key, math.nan))]
            for key in ("loss", "eval_loss")
        )
        if train:
            curves = [charts.Series("training", train, "train")]
            curves += [charts.Series("validation", validation, "validation", ring=True)] if validation else []
            metrics = {name.partition("/")[2]: value for name, value in event["metrics"].items()}
            kind, shown = next(iter(event["metrics"]), "").partition("/")[0], event.get("shown", {})
            unit = "loss" if kind in WITHOUT_NATS else "loss, nats per token"
            item = {
                "stage": stage,
                "chart": Markup(charts.lines(stage, curves, "optimiser step", unit)),
                "sentence": _reward_sentence(metrics) if kind == "grpo" else fit_sentence(train, validation),
                "guards": guards_sentence(metrics, shown),
                "example": shown.get("example"),
                "positions": _positions(shown.get("perplexity_by_position", {})),
            }
            found.append(item)
    return found


def _positions(shown: dict[str, list[list[float]]]) -> list[Markup]:
    """A chart for each kind of text whose perplexity was told in more than one part of its positions."""
    found = []
    for kind, rows in shown.items():
        if len(rows) > 1:
            before, after = ([(row[0], row[column]) for row in rows] for column in (1, 2))
            curves = [charts.Series("before", before, "train"), charts.Series("after", after, "validation")]
            note = "beginning of the part, tokens from the beginning of a text"
            found.append(Markup(charts.lines(f"{kind} text", curves, note, "perplexity")))
    return found


def guards_sentence(metrics: dict[str, float], shown: dict[str, Any]) -> str:
    """What the guards of a training counted and measured."""
    told = []
    if tokens := metrics.get("trained_tokens"):
        rows = metrics.get("chats", metrics.get("pairs", 0)) + metrics.get("texts", 0)
        told.append(f"{tokens:,.0f} tokens with a loss" + (f", {tokens / rows:.3g} a row" if rows else ""))
    if left_out := {name: metrics[name] for name in LEFT_OUT if metrics.get(name)}:
        told.append("left out: " + ", ".join(f"{count:,.0f} {LEFT_OUT[name]}" for name, count in left_out.items()))
    if (leak := shown.get("packing")) is not None:
        told.append(f"packed chats change each other's logits by {leak:.1g} of the largest")
    if merge := shown.get("merge"):
        change, tolerance = merge
        told.append(f"the merge changed the logits by {change:.1g} of the largest ({tolerance:g} is rounding)")
    return "; ".join(told)


def _reward_sentence(metrics: dict[str, float]) -> str:
    first, last = (metrics.get(f"reward_{when}", math.nan) for when in ("first", "last"))
    return f"The mean reward went from {first:.3g} in the first tenth of the training to {last:.3g} in the last."


def fit_sentence(train: list[tuple[float, float]], validation: list[tuple[float, float]]) -> str:
    """One sentence on over- and under-fitting, read from the (step, loss) points of the two curves."""
    falling = f"Training loss went from {train[0][1]:.3g} to {train[-1][1]:.3g}"
    if len(validation) < 3:
        seen = f"{len(validation) or 'no'} validation loss{'es' if len(validation) != 1 else ''}"
        return f"{falling}; with {seen}, over- and under-fitting cannot be told apart."
    step, lowest = min(validation, key=lambda point: point[1])
    last = validation[-1][1]
    if last > lowest * (1 + CHANGE_FRACTION):
        return (
            f"Over-fitting after step {step:g}: validation loss rose from {lowest:.3g} to {last:.3g} while "
            f"training loss ended at {train[-1][1]:.3g}; train for less long or on more data."
        )
    before = validation[-1 - len(validation) // 3][1]
    if before - last > last * CHANGE_FRACTION:
        return f"Under-fitting: validation loss was still falling, {before:.3g} to {last:.3g}; train for longer."
    return f"{falling}, validation loss levelled off at {last:.3g}: no sign of over- or under-fitting."
