"""Windows of the prediction log: the reference, and the equal windows that follow it.

Windows are counted from the first row that the current model served and do not overlap, so a window holds the
same rows whenever it is looked at, and a new champion starts over with a reference of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bloomery.components.core import tables
from bloomery.components.core.artifact import MANIFEST
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring.config import MonitoringConfig


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


def take(log: Path | str, config: MonitoringConfig, now: datetime) -> Snapshot:
    """Read a prediction log: a file, folder or URI of JSONL or Parquet rows of prediction/1.

    Raises: DataError if there is no log, or no usable row in it.
    """
    left_out: Counter[str] = Counter()
    rows: dict[str, tuple[datetime, Prediction]] = {}
    for time, row in _read(log, left_out):
        if row.id in rows:
            left_out["duplicate_id"] += 1
        else:
            rows[row.id] = (time, row)
    if not rows:
        raise DataError(
            f"{log}: no usable prediction/1 row; left out: {dict(left_out) or 'nothing, the log is empty'}"
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
    return Snapshot(":".join(_model(newest)), parts[0], windows, counts)


def _model(row: Prediction) -> tuple[str, str]:
    return row.model_name, row.model_version


def _read(log: Path | str, left_out: Counter[str]) -> Iterator[tuple[datetime, Prediction]]:
    for file in tables.list_files(str(log)):
        if Path(file).name == MANIFEST:
            continue
        for raw in tables.read_rows(file):
            if raw.value is None:
                left_out[raw.problem] += 1
                continue
            try:
                row = Prediction.model_validate(raw.value)
                yield parse_time(row.time), row
            except ValidationError:
                left_out["wrong_fields"] += 1
            except ValueError:
                left_out["wrong_time"] += 1


def parse_time(text: str) -> datetime:
    """An ISO 8601 time, UTC where it names no zone. Raises: ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


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
