"""Windows of the prediction log: the reference, and the equal windows that follow it.

Windows are counted from the first row that the current model served and do not overlap, so a window holds the
same rows whenever it is looked at, and a new champion starts over with a reference of its own.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.prediction_log import Reading


class Window(NamedTuple):
    """Rows that are judged together, in the order of their times."""

    id: str
    """`<model>-<version>-<hash>-w0003`; the hash tells apart names that look alike in a path."""
    rows: list[Prediction]


class Snapshot(NamedTuple):
    """What a log holds about the model that served its newest row."""

    champion: str
    """`name:version` of that model."""
    reference: list[Prediction]
    """Its first rows; shorter than asked while there is no full reference."""
    windows: list[Window]
    """The full windows after the reference, oldest first."""
    left_out: dict[str, int]
    """Rows of the log in no window, by reason: why they could not be read, `wrong_fields`, `wrong_time`,
    `duplicate_id`, `other_model`, `incomplete_window`."""
    quarantined: dict[str, str]
    """Files of the log that are torn, corrupt or of another schema, and why."""
    num_unknown_labels: int
    """Late labels for ids that the log does not hold."""


def take(log: Path | str, config: MonitoringConfig, now: datetime) -> Snapshot:
    """Read a prediction log, or a file, folder or URI of JSONL or Parquet rows of prediction/1.

    Raises: DataError if there is no log, or no usable row in it.
    """
    reading = Reading(str(log))
    left_out = reading.left_out
    rows: dict[str, tuple[datetime, Prediction]] = {}
    for time, row in reading:
        if row.id in rows:
            left_out["duplicate_id"] += 1
        else:
            rows[row.id] = (time, row)
    if not rows:
        raise DataError(
            f"{log}: no usable prediction/1 row; left out: "
            f"{ {**left_out, **reading.quarantined} or 'nothing, the log is empty'}"
        )
    ordered = sorted(rows.values(), key=lambda item: (item[0], item[1].id))
    newest = ordered[-1][1]
    served = [item for item in ordered if _model(item[1]) == _model(newest)]
    left_out["other_model"] = len(ordered) - len(served)
    parts, left_out["incomplete_window"] = _split(served, config, now)
    prefix = re.sub(r"[^\w.-]+", "_", f"{newest.model_name}-{newest.model_version}")
    windows = [
        Window(f"{prefix}-{content_id(*_model(newest))[:8]}-w{index:04d}", part)
        for index, part in enumerate(parts[1:], start=1)
    ]
    counts = {reason: count for reason, count in sorted(left_out.items()) if count}
    return Snapshot(
        ":".join(_model(newest)), parts[0], windows, counts, reading.quarantined, reading.num_unknown_labels
    )


def _model(row: Prediction) -> tuple[str, str]:
    return row.model_name, row.model_version


def _split(
    served: list[tuple[datetime, Any]], config: MonitoringConfig, now: datetime
) -> tuple[list[list[Prediction]], int]:
    """(reference and full windows, number of rows after the last full one)."""
    if config.window_days is None or config.reference_days is None:
        bounds = [0, config.reference_rows]
        while bounds[-1] + config.window_rows <= len(served):
            bounds.append(bounds[-1] + config.window_rows)
    else:
        end = served[0][0] + timedelta(days=config.reference_days)
        bounds = [0, _rows_before(served, end)]
        while (end := end + timedelta(days=config.window_days)) <= now and bounds[-1] < len(served):
            bounds.append(_rows_before(served, end))
    rows = [row for _, row in served]
    parts = [rows[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
    return parts, max(0, len(rows) - bounds[-1])


def _rows_before(served: list[tuple[datetime, Any]], time: datetime) -> int:
    return sum(1 for moment, _ in served if moment < time)
