"""What the evaluations of a run say: each model's score on each set, and answers side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from markupsafe import Markup

from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.lm_eval_tasks import PREFIX
from bloomery.components.core.scoring.statistics import holm, interval, mean_stderr, paired_difference
from bloomery.components.core.scoring.verify import VerifierConfig
from bloomery.components.evaluation import analysis
from bloomery.pipelines import charts
from bloomery.pipelines.charts import number, percent

RIGHT = 0.5
"""A score from here on counts as a right answer where answers are shown side by side."""
SIGNIFICANT = 0.05
"""An adjusted p-value below this is shown in bold."""
MOST_GROUPS = 6
"""With more groups than this, a table has no column for each."""

Rows = list[dict[str, Any]]


class Comparison(NamedTuple):
    """A model against another on the prompts that both answered."""

    difference: float
    """Of the mean scores; for perplexities, of the mean log-likelihoods in nats per token."""
    stderr: float
    p: float
    """Two-sided; McNemar's for right-or-wrong scores, else that of the paired t-test."""
    n: int


def compare(rows: Rows, rival: Rows) -> Comparison | None:
    """`rows` against those of a rival, paired by prompt; None if they share no prompt."""
    theirs = {row["id"]: row["score"] for row in rival}
    shared = [row for row in rows if row["id"] in theirs]
    if not shared:
        return None
    weights = _weights(shared) if is_perplexity(shared) else None
    return Comparison(*paired_difference(_scores(shared), [theirs[row["id"]] for row in shared], weights), len(shared))


def is_perplexity(rows: Rows) -> bool:
    """True if the scores are log-likelihoods."""
    return rows[0]["metric"] == "log_likelihood"


class Scores:
    """The evaluation results of a run.

    `models` holds the eval_result/2 rows of each model, `tasks` the task configs by name as JSON values; a
    task that is not among them counts as a general task if it is one of lm-eval, else as a domain task. `chain` names
    the models in the order in which they were made; others follow, and the champion of before comes last.
    """

    def __init__(self, models: dict[str, Rows], tasks: dict[str, Any], chain: Sequence[str] = ()) -> None:
        self._tasks = tasks
        order = dict.fromkeys(name for name in ("base", *chain, *models) if name != "champion")
        self._order = [*order, "champion"]
        self.sets: dict[tuple[str, str], dict[str, Rows]] = {}
        """Rows by (task, split) and model, in order."""
        for model in self._in_order(models):
            for row in models[model]:
                self.sets.setdefault((row["task"], row["split"]), {}).setdefault(model, []).append(row)
        trained = [model for model in self._in_order(models) if models[model] and model not in ("base", "champion")]
        self.final = trained[-1] if trained else ""
        """The model that would be served: the last one that was evaluated; '' if there is only the base."""

    def _in_order(self, models: Iterable[str]) -> list[str]:
        return sorted(models, key=self._order.index)

    def answered(self) -> list[tuple[str, str]]:
        """(task, split) of the domain sets whose answers are verified."""
        return [key for key in self.sets if self._role(key) == "domain" and not self._is_perplexity(key)]

    def change(self, key: tuple[str, str]) -> dict[str, str] | None:
        """A set in one line, from the base to the final model; None if one of them did not answer it."""
        by_model = self.sets[key]
        if not {"base", self.final} <= by_model.keys():
            return None
        before, after = (mean_stderr(_scores(by_model[model]))[0] for model in ("base", self.final))
        low, high = interval(_scores(by_model[self.final]))
        note = f"base → {self.final}, 95 % interval {percent(low)} to {percent(high)}"
        return {"name": ".".join(key), "value": f"{percent(before)} → {percent(after)}", "note": note}

    def parts(self) -> list[dict[str, Any]]:
        """Charts and tables of every set: domain tasks, general tasks, safety, perplexities."""
        kinds = {key: "perplexity" if self._is_perplexity(key) else self._role(key) for key in self.sets}
        told = (
            ("domain", "Domain tasks", ""),
            ("general", "General tasks", "What the base model could do and must not forget."),
            ("safety", "Safety", "The share that behaved rightly: refused what is harmful, answered what is not."),
            ("perplexity", "Perplexity", "Per token; lower is better. A difference is a relative change."),
        )
        return [
            {"title": title, "note": note, **self._part([key for key in kinds if kinds[key] == kind], kind)}
            for kind, title, note in told
            if kind in kinds.values()
        ]

    def cards(self) -> dict[str, Any]:
        """Ten prompts as the base model, the first that answered any of a set rightly, and the final one answered them:
        some fixed, wrong, broken, right.

        Raises: DataError if no two models answered the same domain set.
        """
        found: dict[str, Rows] = {"fixed": [], "wrong": [], "broken": [], "right": []}
        for key in self.answered():
            able = (m for m, rows in self.sets[key].items() if any(row["score"] >= RIGHT for row in rows))
            first = next((model for model in able if model not in ("base", "champion")), self.final)
            shown = [model for model in dict.fromkeys(("base", first, self.final)) if model in self.sets[key]]
            by_id = {model: {row["id"]: row for row in self.sets[key][model]} for model in shown}
            for identity in sorted(by_id.get(self.final, {})):
                answers = [(model, rows[identity]) for model, rows in by_id.items() if identity in rows]
                right = [row["score"] >= RIGHT for _, row in answers]
                if len(right) > 1:
                    before = "right" if right[0] else "fixed"
                    kind = before if right[-1] else ("broken" if any(right) else "wrong")
                    found[kind].append({"kind": kind, "answers": answers, **answers[-1][1]})
        counts = {kind: len(rows) for kind, rows in found.items()}
        if not any(counts.values()):
            raise DataError("No two models answered the same prompts, so there is nothing to set side by side.")
        most = {"fixed": 4, "wrong": 3, "broken": 3, "right": 0}
        for kind in ("right", "fixed", "wrong", "broken"):
            free = 10 - sum(min(most[name], counts[name]) for name in most)
            most[kind] = min(most[kind], counts[kind]) + max(free, 0)
        cards = [card for kind, rows in found.items() for card in _spread(rows, most[kind])][:10]
        return {"counts": counts, "total": sum(counts.values()), "cards": cards, "right_from": RIGHT}

    def _role(self, key: tuple[str, str]) -> str:
        return self._tasks.get(key[0], {}).get("role", "general" if key[0].startswith(PREFIX) else "domain")

    def _is_perplexity(self, key: tuple[str, str]) -> bool:
        return any(is_perplexity(rows) for rows in self.sets[key].values())

    def _mark(self, model: str) -> str:
        return {"base": "start", "champion": "champion", self.final: "final"}.get(model, "stage")

    def _part(self, keys: list[tuple[str, str]], kind: str) -> dict[str, Any]:
        perplexity = kind == "perplexity"
        groups = sorted({row["group"] for key in keys for rows in self.sets[key].values() for row in rows} - {""})
        groups = groups if 2 <= len(groups) <= MOST_GROUPS else []
        pictures, blocks = [], []
        for key in keys:
            name = ".".join(key) + (f" ({self._role(key)} text)" if perplexity else "")
            by_model = self.sets[key]
            marks = [
                charts.Interval(model, *_estimate(rows, perplexity), self._mark(model))
                for model, rows in by_model.items()
            ]
            axis, form = ("perplexity per token", _perplexity) if perplexity else ("mean score", percent)
            pictures.append(Markup(charts.ladder(name, marks, axis, form)))
            blocks.append({"name": name, "rows": [self._row(by_model, model, groups) for model in by_model]})
        compared = [row for block in blocks for row in block["rows"]]
        _tell(cell for row in compared for cell in row["against"].values())
        rivals = [
            name for name in ("stage before", "base", "champion") if any(row["against"][name] for row in compared)
        ]
        metrics = sorted({rows[0]["metric"] for key in keys for rows in self.sets[key].values()})
        return {
            "charts": pictures,
            "blocks": blocks,
            "groups": groups,
            "rivals": rivals,
            "unit": "perplexity" if perplexity else f"{', '.join(metrics).replace('_', ' ')}, %",
        }

    def _row(self, by_model: dict[str, Rows], model: str, groups: list[str]) -> dict[str, Any]:
        """A model's row in the table of a set, with its paired differences to its rivals."""
        rows = by_model[model]
        mean, stderr = mean_stderr(_scores(rows), _weights(rows))
        # The error of exp(x) is exp(x) times the error of x, to first order.
        error = f"{math.exp(-mean) * stderr:#.2g}" if is_perplexity(rows) else f"{100 * stderr:.1f}"
        earlier = list(by_model)[: list(by_model).index(model)]
        before = earlier[-1] if earlier and model != "champion" else model
        rivals = {"stage before": model if before == "base" else before, "base": "base", "champion": "champion"}
        return {
            "stage": model,
            "kind": self._mark(model),
            "n": f"{len(rows):,}",
            "score": _told(rows),
            "stderr": error,
            "groups": [_told([row for row in rows if row["group"] == group]) for group in groups],
            "against": {
                name: Cell(rows, by_model[rival]) if rival in by_model and model not in (rival, "base") else None
                for name, rival in rivals.items()
            },
        }

    def forgetting(self) -> dict[str, Any]:
        """What each stage changed of each general skill (the group of a general task), against the base model.

        Raises: DataError if no general set with groups was answered by the base and another model.
        """
        found = []
        for key, by_model in self.sets.items():
            if self._role(key) != "general" or "base" not in by_model:
                continue
            for group in sorted({row["group"] for row in by_model["base"]} - {""}):
                skill = {model: [row for row in rows if row["group"] == group] for model, rows in by_model.items()}
                cells = {model: Cell(rows, skill["base"]) for model, rows in skill.items() if model != "base" and rows}
                if cells:
                    of_base = {"n": f"{len(skill['base']):,}", "base": _told(skill["base"])}
                    found.append({"set": ".".join(key), "skill": group, **of_base, "cells": cells})
        if not found:
            raise DataError("No general task with groups was answered by the base model and by another.")
        _tell(cell for row in found for cell in row["cells"].values())
        return {"rows": found, "stages": self._in_order({model for row in found for model in row["cells"]})}

    def lost(self, model: str, parent: str = "") -> dict[str, str]:
        """The paired difference of a model to `parent`, none: the one before it, with its error, by set that both
        answered."""
        found = {}
        for key, by_model in self.sets.items():
            earlier = list(by_model)[: list(by_model).index(model)] if model in by_model else []
            before = parent if parent in by_model else earlier[-1] if earlier else ""
            if before and model in by_model and (comparison := compare(by_model[model], by_model[before])):
                found[".".join(key)] = change(comparison, self._is_perplexity(key))
        return found

    def confusions(self) -> list[Markup]:
        """The confusion matrix of the final model on each set of a label task."""
        pictures = []
        for key, by_model in self.sets.items():
            verifier = self._tasks.get(key[0], {}).get("verifier", {})
            if verifier.get("kind") == "label" and self.final in by_model:
                pairs = analysis.label_pairs(by_model[self.final], VerifierConfig.model_validate(verifier))
                rows, columns, counts = analysis.confusion(*pairs)
                name = f"{'.'.join(key)}, {self.final}"
                note = f"of {len(set(pairs[0]))} labels those with the most errors; rows: right, columns: answered"
                pictures.append(Markup(charts.matrix(name, rows, columns, counts, note)))
        return pictures


class Cell:
    """A comparison in a table; `difference` and `p` are its text once `_tell` knows how many there are."""

    def __init__(self, rows: Rows, rival: Rows) -> None:
        self.comparison = compare(rows, rival)
        self.perplexity = is_perplexity(rows)
        self.difference = self.p = "–"
        self.significant = False


def _tell(cells: Iterable[Cell | None]) -> None:
    """Write what each comparison found, its p-value adjusted for all of them."""
    told = [cell for cell in cells if cell and cell.comparison]
    adjusted = holm([cell.comparison.p for cell in told if cell.comparison])
    for cell, p in zip(told, adjusted, strict=True):
        assert cell.comparison
        cell.difference = change(cell.comparison, cell.perplexity)
        cell.significant = p < SIGNIFICANT
        cell.p = "<0.001" if p < 0.001 else f"{p:.3f}"


def change(comparison: Comparison, perplexity: bool) -> str:
    """A difference with its error: of scores in points of 100, of perplexities relative."""
    if perplexity:
        ratio = math.exp(-comparison.difference)
        text = f"{100 * (ratio - 1):+.1f} % ± {100 * ratio * comparison.stderr:.1f}"
    else:
        text = f"{100 * comparison.difference:+.1f} ± {100 * comparison.stderr:.1f}"
    return text.replace("-", "−")


def _estimate(rows: Rows, perplexity: bool) -> tuple[float, float, float]:
    """(value, low, high) of a mean score or of a perplexity, exp(-mean), with the 95 % interval."""
    if not perplexity:
        return mean_stderr(_scores(rows))[0], *interval(_scores(rows))
    low, high = interval(_scores(rows), _weights(rows))
    return math.exp(-mean_stderr(_scores(rows), _weights(rows))[0]), math.exp(-high), math.exp(-low)


def _told(rows: Rows) -> str:
    if not rows:
        return "–"
    mean, _ = mean_stderr(_scores(rows), _weights(rows))
    return _perplexity(math.exp(-mean)) if is_perplexity(rows) else f"{100 * mean:.1f}"


def _perplexity(value: float) -> str:
    return f"{value:#.4g}" if value < 1000 else number(value)


def _spread(cards: Rows, most: int) -> Rows:
    """At most `most` of the cards, taken from the groups and sets in turn."""
    queues: dict[tuple[str, str], Rows] = {}
    for card in cards:
        queues.setdefault((card["split"], card["group"]), []).append(card)
    turns = zip_longest(*(queues[key] for key in sorted(queues)))
    return [card for turn in turns for card in turn if card][:most]


def _scores(rows: Rows) -> list[float]:
    return [row["score"] for row in rows]


def _weights(rows: Rows) -> list[float]:
    return [row["weight"] for row in rows]
