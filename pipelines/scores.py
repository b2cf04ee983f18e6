"""What the evaluations of a run say: each model's score on each set, and answers side by side."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

from markupsafe import Markup

from bloomery.components.core.errors import DataError
from bloomery.components.core.statistics import interval, mean_stderr, paired_difference
from bloomery.pipelines import charts
from bloomery.pipelines.charts import number, percent

ORDER = ("base", "cpt", "sft", "sft_2", "dpo", "ptq")
"""Order of the models; others follow by name, and the champion of before comes last."""
RIGHT = 0.5
"""A score from here on counts as a right answer where answers are shown side by side."""
MOST_GROUPS = 6
"""With more groups than this, a table has no column for each."""

Rows = list[dict[str, Any]]


class Scores:
    """The evaluation results of a run.

    `models` holds the eval_result/2 rows of each model, `tasks` the task configs by name as JSON values; a
    task that is not among them counts as a domain task, and as perplexity if its weights are not all 1.
    """

    def __init__(self, models: dict[str, Rows], tasks: dict[str, Any]) -> None:
        self._tasks = tasks
        self.sets: dict[tuple[str, str], dict[str, Rows]] = {}
        """Rows by (task, split) and model, in order."""
        for model in sorted(models, key=_position):
            for row in models[model]:
                self.sets.setdefault((row["task"], row["split"]), {}).setdefault(model, []).append(row)
        trained = [model for model, rows in models.items() if rows and model not in ("base", "champion")]
        self.final = max(trained, key=_position, default="")
        """The model that would be served: the last one that was evaluated; '' if there is only the base."""

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
        """Charts and tables of every set: domain tasks, general tasks, perplexities."""
        kinds = {key: "perplexity" if self._is_perplexity(key) else self._role(key) for key in self.sets}
        told = (
            ("domain", "Domain tasks", ""),
            ("general", "General tasks", "What the base model could do and must not forget."),
            ("perplexity", "Perplexity", "Per token; lower is better. A difference is a relative change."),
        )
        return [
            {"title": title, "note": note, **self._part([key for key in kinds if kinds[key] == kind], kind)}
            for kind, title, note in told
            if kind in kinds.values()
        ]

    def cards(self) -> dict[str, Any]:
        """Ten prompts as base, sft and the final model answered them: some fixed, wrong, broken, right.

        Raises: DataError if no two models answered the same domain set.
        """
        found: dict[str, Rows] = {"fixed": [], "wrong": [], "broken": [], "right": []}
        for key in self.answered():
            shown = [model for model in dict.fromkeys(("base", "sft", self.final)) if model in self.sets[key]]
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
            raise DataError(
                "No two models answered the same prompts, so there is nothing to set side by side."
            )
        most = {"fixed": 4, "wrong": 3, "broken": 3, "right": 0}
        for kind in ("right", "fixed", "wrong", "broken"):
            free = 10 - sum(min(most[name], counts[name]) for name in most)
            most[kind] = min(most[kind], counts[kind]) + max(free, 0)
        cards = [card for kind, rows in found.items() for card in _spread(rows, most[kind])][:10]
        return {"counts": counts, "total": sum(counts.values()), "cards": cards, "right_from": RIGHT}

    def _role(self, key: tuple[str, str]) -> str:
        return self._tasks.get(key[0], {}).get("role", "domain")

    def _is_perplexity(self, key: tuple[str, str]) -> bool:
        if key[0] in self._tasks:
            return self._tasks[key[0]]["verifier"]["kind"] == "perplexity"
        return any(row["weight"] != 1 for rows in self.sets[key].values() for row in rows)

    def _mark(self, model: str) -> str:
        return {"base": "start", "champion": "champion", self.final: "final"}.get(model, "stage")

    def _part(self, keys: list[tuple[str, str]], kind: str) -> dict[str, Any]:
        perplexity = kind == "perplexity"
        groups = sorted(
            {row["group"] for key in keys for rows in self.sets[key].values() for row in rows} - {""}
        )
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
            blocks.append(
                {"name": name, "rows": [self._row(by_model, model, perplexity, groups) for model in by_model]}
            )
        return {
            "charts": pictures,
            "blocks": blocks,
            "groups": groups,
            "unit": "perplexity" if perplexity else "score, %",
        }

    def _row(
        self, by_model: dict[str, Rows], model: str, perplexity: bool, groups: list[str]
    ) -> dict[str, Any]:
        """A model's row in the table of a set, with its paired difference to the stage before it."""
        rows = by_model[model]
        mean, stderr = mean_stderr(_scores(rows), _weights(rows))
        # The error of exp(x) is exp(x) times the error of x, to first order.
        error = f"{math.exp(-mean) * stderr:#.2g}" if perplexity else f"{100 * stderr:.1f}"
        earlier = list(by_model)[: list(by_model).index(model)]
        rival = self.final if model == "champion" and self.final in by_model else (earlier or [""])[-1]
        return {
            "stage": model,
            "kind": self._mark(model),
            "n": f"{len(rows):,}",
            "score": _told(rows, perplexity),
            "stderr": error,
            "groups": [_told([row for row in rows if row["group"] == group], perplexity) for group in groups],
            "against": rival or "–",
            **_difference(rows, by_model.get(rival, []), perplexity),
        }


def _estimate(rows: Rows, perplexity: bool) -> tuple[float, float, float]:
    """(value, low, high) of a mean score or of a perplexity, exp(-mean), with the 95 % interval."""
    if not perplexity:
        return mean_stderr(_scores(rows))[0], *interval(_scores(rows))
    low, high = interval(_scores(rows), _weights(rows))
    return math.exp(-mean_stderr(_scores(rows), _weights(rows))[0]), math.exp(-high), math.exp(-low)


def _told(rows: Rows, perplexity: bool) -> str:
    if not rows:
        return "–"
    mean, _ = mean_stderr(_scores(rows), _weights(rows))
    return _perplexity(math.exp(-mean)) if perplexity else f"{100 * mean:.1f}"


def _perplexity(value: float) -> str:
    return f"{value:#.4g}" if value < 1000 else number(value)


def _difference(rows: Rows, rival: Rows, perplexity: bool) -> dict[str, str]:
    """The paired difference to a rival and its p-value, over the prompts that both answered."""
    theirs = {row["id"]: row["score"] for row in rival}
    shared = [row for row in rows if row["id"] in theirs]
    if not shared:
        return {"difference": "–", "p": "–"}
    weights = _weights(shared) if perplexity else None
    difference, stderr, p = paired_difference(_scores(shared), [theirs[row["id"]] for row in shared], weights)
    text = f"{100 * difference:+.1f} ± {100 * stderr:.1f}"
    if perplexity:
        ratio = math.exp(-difference)
        text = f"{100 * (ratio - 1):+.1f} % ± {100 * ratio * stderr:.1f}"
    return {"difference": text.replace("-", "−"), "p": "<0.001" if p < 0.001 else f"{p:.3f}"}


def _spread(cards: Rows, most: int) -> Rows:
    """At most `most` of the cards, taken from the groups and sets in turn."""
    queues: dict[tuple[str, str], Rows] = {}
    for card in cards:
        queues.setdefault((card["split"], card["group"]), []).append(card)
    turns = zip_longest(*(queues[key] for key in sorted(queues)))
    return [card for turn in turns for card in turn if card][:most]


def _position(model: str) -> tuple[int, str]:
    if model == "champion":
        return len(ORDER) + 1, model
    return (ORDER.index(model) if model in ORDER else len(ORDER)), model


def _scores(rows: Rows) -> list[float]:
    return [row["score"] for row in rows]


def _weights(rows: Rows) -> list[float]:
    return [row["weight"] for row in rows]
