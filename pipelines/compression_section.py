"""The report's part on what was made smaller: what every stage that did so cost before and after, and what it lost.

Such a stage tells the metrics of `core/modelling/costs.py`, its own and as `parent_…` those of the model that it began
with, of distillation those of its teacher; ptq tells its bytes and times in the same words. What it lost is the paired
difference of its model's evaluation to that of the stage before, or of the stage that taught it.
"""

from __future__ import annotations

from typing import Any

from bloomery.components.core.errors import DataError
from bloomery.pipelines.charts import duration_ms, number, size
from bloomery.pipelines.scores import Scores

COSTS = (
    ("parameters", "parameters", number),
    ("bytes", "size on disk", size),
    ("prefill_seconds", "prompt of 128 tokens", duration_ms),
    ("decode_seconds_per_token", "decoded token", duration_ms),
)
"""Metric, its title and its form."""


def read(finished: dict[str, Any], scores: Scores) -> dict[str, Any]:
    """A row for each stage that made a model smaller, with its costs and differences by set; the fronts of searches.

    Raises: DataError if no stage did.
    """
    rows = []
    for stage, event in finished.items():
        metrics = {name.partition("/")[2]: value for name, value in event["metrics"].items()}
        if "parent_bytes" not in metrics or "bytes" not in metrics:
            continue
        costs = [_told(metrics, name, form) for name, _, form in COSTS]
        rows.append({"stage": stage, "costs": costs, "lost": scores.lost(stage, event["shown"].get("parent", ""))})
    if not rows:
        raise DataError("No stage made a model smaller.")
    return {
        "rows": rows,
        "titles": [title for _, title, _ in COSTS],
        "sets": list(dict.fromkeys(name for row in rows for name in row["lost"])),
        "fronts": [(stage, event["shown"]["front"]) for stage, event in finished.items() if _has_front(event)],
    }


def _told(metrics: dict[str, float], name: str, form: Any) -> str:
    before, after = metrics.get(f"parent_{name}"), metrics.get(name)
    if before is None or after is None:
        return "–"
    change = f", {after / before - 1:+.0%}".replace("-", "−").replace("%", " %") if before else ""
    return f"{form(before)} → {form(after)}{change}"


def _has_front(event: dict[str, Any]) -> bool:
    return bool(event.get("shown", {}).get("front"))
