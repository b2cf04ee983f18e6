"""The report's part on quantised variants: what each costs, what it is worth, and which are worth their cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.statistics import Z95
from bloomery.pipelines import charts
from bloomery.pipelines.charts import duration_ms, percent, size
from bloomery.pipelines.run_outputs import VARIANT, Outputs

PICTURES = (
    ("Size against score", "bytes", "size on disk", size),
    ("Latency against score", "decode_seconds_per_token", "time of a decoded token", duration_ms),
)
"""Title, cost, its axis and its form."""


def read(outputs: Outputs, finished: dict[str, Any], chain: Sequence[str] = ("ptq",)) -> dict[str, Any]:
    """The table of ptq with the evaluations of the variants, the schemes left out and those refused with the reasons,
    and the Pareto pictures, where something was scored.

    `chain` names the stages of the run. Raises: DataError if ptq left no variants, or is not among them.
    """
    if "ptq" not in chain:
        raise DataError("The recipe has no `quantisation`: the model is served as it was trained.")
    if ("ptq", "variants") not in outputs:
        raise DataError("ptq did not finish, or its output `variants` is gone.")
    table = json.loads((outputs["ptq", "variants"].path / "variants.json").read_text(encoding="utf-8"))
    rows = [{**row, **evaluated(row["scheme"], finished)} for row in table if not row.get("skipped")]
    scored = [row for row in rows if row.get("score") is not None]
    pictures = [picture(scored, *told) for told in PICTURES if any(row.get(told[1]) is not None for row in scored)]
    hidden = ("skipped", "refused", "prefill_tokens")
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in hidden]
    return {
        "rows": rows,
        "columns": columns,
        "numeric": {name for row in rows for name, value in row.items() if isinstance(value, int | float)},
        "charts": [Markup(chart) for chart in pictures],
        "skipped": [(row["scheme"], row["skipped"]) for row in table if row.get("skipped")],
        "refused": [(row["scheme"], row["refused"]) for row in rows if row.get("refused")],
    }


def evaluated(scheme: str, finished: dict[str, Any]) -> dict[str, float]:
    """The scores of a variant on the evaluation sets, `task.set` by `task.set`."""
    metrics = finished.get(f"evaluation_{VARIANT}{scheme}", {}).get("metrics", {})
    return {
        name.removeprefix("evaluation/").removesuffix(".accuracy"): value
        for name, value in metrics.items()
        if name.endswith(".accuracy")
    }


def picture(rows: Sequence[dict[str, Any]], title: str, cost: str, axis: str, form: Any) -> str:
    """Cost against score; a line joins the variants of the Pareto front."""
    front = pareto([(row[cost], row["score"]) for row in rows])
    points = []
    for row, best in zip(rows, front, strict=True):
        half = Z95 * (row["stderr"] if row.get("stderr") is not None else math.nan)
        low, high = row["score"] - half, row["score"] + half
        points.append(charts.Point(row["scheme"], row[cost], row["score"], low, high, bool(row.get("chosen")), best))
    return charts.scatter(title, points, axis, "validation score", form, percent)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, score) points, those that none beats in one without losing in the other."""
    return [not any(c <= cost and s >= score and (c < cost or s > score) for c, s in points) for cost, score in points]
