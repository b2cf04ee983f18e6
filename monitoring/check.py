"""One look at the prediction log: window, drift, decision, trigger; its findings are saved beside the
runs."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bloomery.components.core.artifact import write_atomically
from bloomery.components.core.config import parse
from bloomery.components.core.errors import BloomeryError, from_os_error
from bloomery.components.core.step import configure_logging
from bloomery.monitoring import drift, page, policy, snapshot, trigger
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.drift import DriftReport
from bloomery.monitoring.snapshot import Snapshot, Window

logger = logging.getLogger(__name__)


def check(
    recipe_path: Path | str,
    workdir: Path,
    log_path: Path | str,
    config: MonitoringConfig,
    *,
    settings: Sequence[str] = (),
    now: datetime | None = None,
    start: bool = True,
) -> dict[str, Any]:
    """Judge the newest full window of the log, and start the retraining that `config.policy` asks for, once.

    `settings` are `--set` values of this check, which the retraining inherits before those of `config.settings`.
    Writes to `workdir/monitoring/<window>/`: `decision.json`, `decision.md`, `drift.json`, `drift.html` and
    `window.jsonl`; a started retraining is recorded in `workdir/monitoring/triggers/`. With `start=False`
    nothing is started or recorded.
    Returns the content of `decision.json`; `window` is None while there is no full window.
    Raises: DataError if the log cannot be used, ServiceError if the retraining cannot be started.
    """
    now = now or datetime.now(UTC)
    taken = snapshot.take(log_path, config, now)
    if not taken.windows:
        return _nothing_yet(taken, config)
    inherited = [*settings, *config.settings]
    try:
        return _judge(taken, recipe_path, workdir.absolute(), config, inherited, now, start)
    except OSError as error:
        raise from_os_error(error, f"writing to {workdir / 'monitoring'}") from error


def _judge(
    taken: Snapshot,
    recipe: Path | str,
    workdir: Path,
    config: MonitoringConfig,
    settings: Sequence[str],
    now: datetime,
    start: bool,
) -> dict[str, Any]:
    home = workdir / "monitoring"
    *earlier, window = taken.windows[-config.policy.consecutive_windows :]
    report = _report(home, taken, window, config)
    previous = [_report(home, taken, before, config) for before in reversed(earlier)]
    folder, triggers = home / window.id, home / "triggers"
    record = trigger.record_file(triggers, window.id)
    settings = [setting.replace("{window}", str(folder / "window.jsonl")) for setting in settings]
    if record.exists():
        decision = policy.Decision(action="retrain", reason="a retraining for this window was started before")
        started = trigger.Started(trigger.read(record), is_new=False)
    else:
        past = [item.time for item in trigger.started_before(triggers)]
        decision, started = policy.decide(report, policy.History(previous, past), config.policy, now), None
    command = started.trigger.command if started else []
    if decision.action == "retrain" and started is None:
        command = trigger.retraining_command(recipe, workdir, settings, config.runner)
        if start:
            started = trigger.start(
                triggers,
                window.id,
                command,
                log=folder / "retraining.log",
                wait=config.runner == "cluster",
                now=now,
            )
    result = {
        "window": window.id,
        "champion": taken.champion,
        "checked": now.isoformat(timespec="seconds"),
        "action": decision.action,
        "reason": decision.reason,
        "drifted_share": round(report.drifted_share, 3),
        "drifted_signals": [signal.name for signal in report.signals if signal.drifted],
        "started": started.trigger.model_dump(mode="json") if started else None,
        "started_now": bool(started and started.is_new),
        "command": shlex.join(command),
        "left_out": taken.left_out,
        "quarantined": taken.quarantined,
        "unknown_labels": taken.num_unknown_labels,
        "decision_page": str(folder / "decision.md"),
        "drift_page": str(folder / "drift.html"),
    }
    page.save(folder, report, result)
    return result


def _report(home: Path, taken: Snapshot, window: Window, config: MonitoringConfig) -> DriftReport:
    """The drift of `window`, computed once for the same rows and settings."""
    folder = home / window.id
    inputs = drift.inputs_digest(taken.reference, window, config)
    try:
        saved = DriftReport.model_validate_json((folder / "drift.json").read_bytes())
        if saved.inputs == inputs and (folder / "drift.html").is_file():
            return saved
    except (FileNotFoundError, ValidationError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    report = drift.compare(taken.reference, window, taken.champion, config, folder / "drift.html")
    write_atomically(folder / "window.jsonl", "".join(row.model_dump_json() + "\n" for row in window.rows))
    write_atomically(folder / "drift.json", report.model_dump_json(indent=1))
    return report


def _nothing_yet(taken: Snapshot, config: MonitoringConfig) -> dict[str, Any]:
    wanted = f"{config.reference_rows} + {config.window_rows} rows"
    if config.window_days is not None:
        wanted = f"{config.reference_days:g} + {config.window_days:g} days"
    found = len(taken.reference) + taken.left_out.get("incomplete_window", 0)
    return {
        "window": None,
        "champion": taken.champion,
        "action": "none",
        "reason": f"{found} rows of {taken.champion} so far; a reference and a full window are {wanted}",
        "drifted_share": 0.0,
        "drifted_signals": [],
        "started": None,
        "started_now": False,
        "command": "",
        "left_out": taken.left_out,
        "quarantined": taken.quarantined,
        "unknown_labels": taken.num_unknown_labels,
    }


def check_task(
    recipe: str,
    workdir: str,
    log: str,
    config: Mapping[str, Any],
    decision: Any,
    drift_page: Any,
    metrics: Any,
) -> None:
    """`check` as a pipeline task: writes the pages to the kfp artifacts `decision` and `drift_page`, and what
    was found to `metrics`. A BloomeryError is logged without traceback and ends the process with its exit
    code."""
    configure_logging()
    try:
        result = check(recipe, Path(workdir), log, parse(MonitoringConfig, config, where="monitoring"))
    except BloomeryError as error:
        logger.error("drift_check: %s", error)
        sys.exit(error.exit_code)
    logger.info("%s: %s", result["action"], result["reason"])
    for artifact, page_file in ((decision, "decision_page"), (drift_page, "drift_page")):
        text = Path(result[page_file]).read_text(encoding="utf-8") if result["window"] else result["reason"]
        Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
        Path(artifact.path).write_text(text, encoding="utf-8")
    found = {
        "drift_check/drifted_share": result["drifted_share"],
        "drift_check/started": float(result["started_now"]),
    }
    Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
    Path(metrics.path).write_text(json.dumps(found))
    metrics.metadata.update(found)
