"""Windows of the prediction log: the reference, and the equal windows that follow it.

Windows are counted from the first row that the current model served and do not overlap, so a window holds the
same rows whenever it is looked at, and a new champion starts over with a reference of its own. The log is read twice:
once for ids, times and models alone, and then the texts of the windows that a check compares.
"""

from __future__ import annotations

import bisect
import logging
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring import prediction_log
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.prediction_log import Reading

logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """Rows that are judged together, in the order of their times."""

    id: str
    """`<model>-<version>-<hash>-w0003`; the hash tells apart names that look alike in a path."""
    rows: list[Prediction]


class Snapshot(NamedTuple):
    """What a log holds about the model that served its newest row."""

    champion: str
    """`name:version` of that model; '' where there is no row yet."""
    reference: list[Prediction]
    """Its first rows; shorter than asked while there is no full reference."""
    windows: list[Window]
    """The newest `policy.consecutive_windows` full windows after the reference, oldest first."""
    left_out: dict[str, int]
    """Rows of the log in no window, by reason: why they could not be read, `wrong_fields`, `wrong_time`,
    `duplicate_id`, `other_model`, `incomplete_window`, `unreadable` (of a window, and then not to be read whole)."""
    quarantined: dict[str, str]
    """Files of the log that are torn, corrupt or of another schema, and why."""
    num_unknown_labels: int
    """Late labels for ids that the log does not hold."""


def take(log: Path | str, config: MonitoringConfig, now: datetime) -> Snapshot:
    """Read a prediction log, or a file, folder or URI of JSONL or Parquet rows of prediction/2.

    Where there is no log yet, or nothing in it, the snapshot names no champion.
    Raises: DataError if no row of it can be used, ServiceError if its store does not answer.
    """
    if not prediction_log.exists(str(log)):
        return Snapshot("", [], [], {}, {}, 0)
    overview = Reading(str(log), heads_only=True)
    left_out, quarantined = overview.left_out, overview.quarantined
    found: dict[str, _Place] = {}
    for time, row in overview:
        if row.id in found:
            left_out["duplicate_id"] += 1
        else:
            found[row.id] = _Place(time, row.id, row.model_name, row.model_version)
    if not found and not left_out and not quarantined:
        return Snapshot("", [], [], {}, {}, 0)
    if not found:
        raise DataError(f"{log}: no usable prediction/2 row; left out: { {**left_out, **quarantined} }")
    ordered = sorted(found.values())
    name, version = ordered[-1].model_name, ordered[-1].model_version
    served = [place for place in ordered if (place.model_name, place.model_version) == (name, version)]
    left_out["other_model"] = len(ordered) - len(served)
    (reference, *parts), left_out["incomplete_window"] = _split(served, config, now)
    compared = parts[-config.policy.consecutive_windows :]
    rows: dict[str, Prediction] = {}
    for span in (reference, [place for part in compared for place in part]):
        rows |= _read(str(log), span, quarantined)
    left_out["unreadable"] = sum(place.id not in rows for part in (reference, *compared) for place in part)
    for file, reason in quarantined.items():
        logger.warning("prediction log: %s is left out: %s", file, reason)
    shown = re.sub(r"[^\w.-]+", "_", f"{name}-{version}")
    prefix = f"{shown}-{content_id(name, version)[:8]}"
    windows = [
        Window(f"{prefix}-w{index:04d}", _rows_of(part, rows))
        for index, part in enumerate(compared, start=1 + len(parts) - len(compared))
    ]
    counts = {reason: count for reason, count in sorted(left_out.items()) if count}
    return Snapshot(
        f"{name}:{version}", _rows_of(reference, rows), windows, counts, quarantined, overview.num_unknown_labels
    )


class _Place(NamedTuple):
    """Where a row stands in the log; sorts by time."""

    time: datetime
    id: str
    model_name: str
    model_version: str


def _read(log: str, places: Sequence[_Place], quarantined: dict[str, str]) -> dict[str, Prediction]:
    """The rows at `places`, which are in order of time, by id; adds to `quarantined` what only now shows."""
    if not places:
        return {}
    wanted = {(place.time, place.id) for place in places}
    rows: dict[str, Prediction] = {}
    reading = Reading(log, places[0].time, places[-1].time + timedelta(microseconds=1))
    for time, row in reading:
        if (time, row.id) in wanted:
            rows.setdefault(row.id, row)
    quarantined |= reading.quarantined
    return rows


def _rows_of(part: Sequence[_Place], rows: dict[str, Prediction]) -> list[Prediction]:
    return [rows[place.id] for place in part if place.id in rows]


def _split(served: list[_Place], config: MonitoringConfig, now: datetime) -> tuple[list[list[_Place]], int]:
    """(reference and full windows, number of rows after the last full one)."""
    if config.window_days is None or config.reference_days is None:
        bounds = [0, config.reference_rows]
        while bounds[-1] + config.window_rows <= len(served):
            bounds.append(bounds[-1] + config.window_rows)
    else:
        end = served[0].time + timedelta(days=config.reference_days)
        bounds = [0, _rows_before(served, end)]
        while (end := end + timedelta(days=config.window_days)) <= now and bounds[-1] < len(served):
            bounds.append(_rows_before(served, end))
    parts = [served[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
    return parts, max(0, len(served) - bounds[-1])


def _rows_before(served: list[_Place], time: datetime) -> int:
    return bisect.bisect_left(served, time, key=lambda place: place.time)
