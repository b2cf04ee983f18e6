"""One look at the prediction log: window, drift, decision, trigger; its findings are saved beside the
runs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from bloomery.components.core.artifact import write_atomically
from bloomery.components.core.config import parse, unpacked
from bloomery.components.core.errors import BloomeryError, ConfigError, ServiceError, from_os_error
from bloomery.components.core.step import ending
from bloomery.monitoring import alerts, drift, embedding, hold, page, policy, snapshot, trigger
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.drift import DriftReport
from bloomery.monitoring.home import Home, at
from bloomery.monitoring.snapshot import Snapshot, Window
from bloomery.monitoring.trigger import Started, Triggers
from bloomery.pipelines import history, keys, submission
from bloomery.pipelines.kubeflow import Access

logger = logging.getLogger(__name__)


def check(
    recipe_path: Path | str,
    workdir: Path | Home,
    log_path: Path | str,
    config: MonitoringConfig,
    *,
    settings: Sequence[str] = (),
    now: datetime | None = None,
    start: bool = True,
) -> dict[str, Any]:
    """Judge the newest full window of the log, and start the retraining that `config.policy` asks for, once.

    `settings` are `--set` values of this check, which the retraining inherits before those of `config.settings`.
    Writes to `workdir/monitoring/<window>/`: `decision.json`, `decision.md`, `drift.json`, `drift.html`,
    `window.jsonl`, `drifted.jsonl` and `retraining.jsonl`, the slices of the drifted windows in a row; a started
    retraining is recorded in `workdir/monitoring/triggers/`. With `start=False` nothing is started, recorded or told.
    Returns the content of `decision.json`; `window` is None while there is no full window, or no log yet.
    Raises: DataError if the log cannot be used, ServiceError if the retraining cannot be started, ConfigError if it
    would run here while what it learns from lies on a store.
    """
    home = workdir if isinstance(workdir, Home) else Home(workdir)
    if home.is_shared and config.runner == "local":
        raise ConfigError(
            "monitoring.runner: found local, and the state of the checks lies on a store; set it to cluster, or give "
            "a --workdir on this machine"
        )
    now = now or datetime.now(UTC)
    taken = snapshot.take(log_path, config, now)
    if not taken.windows:
        return _nothing_yet(taken, config, log_path)
    inherited = [*settings, *config.settings]
    try:
        return _judge(taken, recipe_path, home, config, inherited, now, start)
    except OSError as error:
        raise from_os_error(error, f"writing to {home.folder}") from error


def _judge(
    taken: Snapshot,
    recipe: Path | str,
    home: Home,
    config: MonitoringConfig,
    settings: Sequence[str],
    now: datetime,
    start: bool,
) -> dict[str, Any]:
    workdir = home.workdir
    *earlier, window = taken.windows[-config.policy.consecutive_windows :]
    for one in (*earlier, window):
        home.fetch(*(f"{one.id}/{name}" for name in ("decision.json", "drift.json", "drifted.jsonl")))
    encoder, fault = embedding.encoder_of(config.encoder, taken.champion)
    compared = _Compared(home.folder, taken, config, encoder, {"prompt_embedding": fault} if fault else {})
    report = compared.report(window)
    previous = [compared.report(before) for before in reversed(earlier)]
    folder = home.folder / window.id
    drifted = [window.id, *(r.window for r in itertools.takewhile(lambda report: report.drifted, previous))]
    slices = [folder_of_window(workdir, name) / "drifted.jsonl" for name in reversed(drifted)]
    write_atomically(folder / "retraining.jsonl", "".join(file.read_text(encoding="utf-8") for file in slices))
    files = {"{window}": home.told(folder / "window.jsonl"), "{drifted}": home.told(folder / "retraining.jsonl")}
    settings = [_filled(setting, files) for setting in settings]
    command = trigger.retraining_command(recipe, workdir, settings, config.runner, window.id)
    known = _read_decision(folder)
    result = {
        "window": window.id,
        "champion": taken.champion,
        "checked": now.isoformat(timespec="seconds"),
        "drifted_signals": report.drifted,
        "effect": round(report.effect, 3),
        "left_out": taken.left_out,
        "quarantined": taken.quarantined,
        "unknown_labels": taken.num_unknown_labels,
        "decision_page": home.told(folder / "decision.md"),
        "drift_page": home.told(folder / "drift.html"),
        "alerted": known.get("alerted"),
    }
    try:
        with trigger.opened(home) as triggers:
            decision, started = _act(triggers, workdir, report, previous, command, config, now, start)
    except ServiceError as error:
        if start:
            _tell(config, report, {**result, "action": "failed", "reason": str(error)})
        raise
    result |= {
        "action": decision.action,
        "reason": decision.reason,
        "started": {**started.trigger.model_dump(mode="json"), **_run_of(workdir, started)} if started else None,
        "started_now": bool(started and started.is_new),
        "command": shlex.join(started.trigger.command if started else command if decision.action == "retrain" else []),
    }
    if start:
        result["alerted"] = _tell(config, report, result)
    page.save(folder, report, result)
    return result


def _act(
    triggers: Triggers,
    workdir: Path,
    report: DriftReport,
    previous: list[DriftReport],
    command: list[str],
    config: MonitoringConfig,
    now: datetime,
    start: bool,
) -> tuple[policy.Decision, Started | None]:
    """Decide, and start what was decided now or before and has not begun; one process at a time."""
    recorded = triggers.all()
    own = triggers.of(report.window)
    if own is not None and triggers.is_settled(own):
        started_before = "a retraining for this window was started before"
        return policy.Decision(action="retrain", reason=started_before), Started(own, is_new=False)
    halted = hold.newest(workdir)
    left = [item for item in recorded if _is_of_the_same_champion(item, report) and not triggers.is_settled(item)]
    running = next((item.key for item in recorded if triggers.is_running(item)), None)
    if left and running is None and not policy.held(halted, now) and not policy.quiet(config.policy.quiet_hours, now):
        reason = f"the retraining decided on {left[-1].key} has not begun, and is started again"
        decision = policy.Decision(action="retrain", reason=reason)
        chosen = left[-1]
    else:
        if own is not None and running == own.key:
            return policy.Decision(action="retrain", reason="its retraining is being started"), Started(own, False)
        past = [item.time for item in recorded if item.key != report.window]
        running = running or _running_on_the_cluster(recorded, config)
        decision = policy.decide(report, policy.History(previous, past, running, halted), config.policy, now)
        chosen = None
    if decision.action != "retrain" or not start:
        return decision, None
    key, line = (chosen.key, chosen.command) if chosen else (report.window, command)
    log = folder_of_window(workdir, key) / "retraining.log"
    return decision, triggers.start(key, line, log=log, wait=config.runner == "cluster", now=now)


class _Compared(NamedTuple):
    """The reports of a log's windows, each computed once for the same rows and settings."""

    home: Path
    taken: Snapshot
    config: MonitoringConfig
    encoder: embedding.Encoder | None
    not_compared: dict[str, str]

    def report(self, window: Window) -> DriftReport:
        """The drift of `window`; what it was computed from is written beside it."""
        folder = self.home / window.id
        inputs = drift.inputs_digest(self.taken.reference, window, self.config, self.encoder is not None)
        try:
            saved = DriftReport.model_validate_json((folder / "drift.json").read_bytes())
            if saved.inputs == inputs:
                return saved
        except (FileNotFoundError, ValidationError):
            pass
        folder.mkdir(parents=True, exist_ok=True)
        html = folder / f".drift.html.{os.getpid()}"
        report, rows = drift.compare(
            self.taken.reference, window, self.taken.champion, self.config, html, self.encoder, self.not_compared
        )
        if html.exists():
            os.replace(html, folder / "drift.html")
        _write_lines(folder / "window.jsonl", window.rows)
        _write_lines(folder / "drifted.jsonl", rows)
        write_atomically(folder / "drift.json", report.model_dump_json(indent=1))
        return report


def folder_of_window(workdir: Path, window: str) -> Path:
    """Where everything about a window stands."""
    return workdir / "monitoring" / window


def newest_page(home: Home, window: str | None = None) -> Path:
    """The decision page of a window, by its id, or of the one that was checked last, of those that were fetched.

    Raises: ConfigError if there is none.
    """
    pages = {file.parent.name: file for file in home.folder.glob("*/decision.json")}
    place = home.told(home.folder)
    if not pages:
        raise ConfigError(
            f"{place}: no decision there yet; wait for the first check, run `bloomery monitor check`, or give the "
            "--workdir of one"
        )
    if window is None:
        window = max(pages, key=lambda name: (_read_decision(pages[name].parent).get("checked", ""), name))
    if window not in pages:
        raise ConfigError(f"{place}: no decision on {window}; known: {', '.join(sorted(pages)[-5:])}")
    return pages[window].with_name("decision.md")


def _tell(config: MonitoringConfig, report: DriftReport, result: Mapping[str, Any]) -> str | None:
    """Send the alert that the outcome calls for, once for a window; returns the one that was sent last."""
    event, told = result["action"], result["alerted"]
    wanted = config.alerts.webhook is not None and event in config.alerts.on and event != told
    if wanted and alerts.send(str(config.alerts.webhook), page.alert(report, result)):
        return event
    return told


def _running_on_the_cluster(recorded: list[trigger.Trigger], config: MonitoringConfig) -> str | None:
    """Key of the last submitted retraining if it has not ended."""
    submitted = [item for item in recorded if item.status == "submitted"]
    if config.runner != "cluster" or not submitted:
        return None
    last = max(submitted, key=lambda item: item.time)
    try:
        return last.key if submission.is_unfinished(Access(), last.key) else None
    except BloomeryError as error:  # it cannot be submitted to, either, so nothing runs twice for not knowing
        logger.warning("whether %s has ended is not known: %s", last.key, error)
        return None


def _run_of(workdir: Path, started: Started) -> dict[str, str | None]:
    """Name and outcome of the local run of a trigger, as far as they are known."""
    run = keys.run_of(workdir, started.trigger.key)
    entries = {entry["run"]: entry["status"] for entry in history.runs(workdir)} if run else {}
    return {"run": run, "outcome": entries.get(run or "")}


def _is_of_the_same_champion(item: trigger.Trigger, report: DriftReport) -> bool:
    return item.key.rpartition("-w")[0] == report.window.rpartition("-w")[0]


def _filled(setting: str, files: Mapping[str, str]) -> str:
    for name, file in files.items():
        setting = setting.replace(name, file)
    return setting


def _write_lines(file: Path, rows: Iterable[BaseModel]) -> None:
    """JSON lines, a row at a time: a window of a million rows is not held twice."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(row.model_dump_json() + "\n" for row in rows)
    os.replace(temporary, file)


def _read_decision(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _nothing_yet(taken: Snapshot, config: MonitoringConfig, log: Path | str) -> dict[str, Any]:
    wanted = f"{config.reference_rows} + {config.window_rows} rows"
    if config.window_days is not None:
        wanted = f"{config.reference_days:g} + {config.window_days:g} days"
    found = len(taken.reference) + taken.left_out.get("incomplete_window", 0)
    have = f"{found} rows of {taken.champion} so far" if taken.champion else f"nothing yet: no prediction at {log}"
    return {
        "window": None,
        "champion": taken.champion,
        "action": "none",
        "reason": f"{have}; a reference and a full window are {wanted}",
        "drifted_signals": [],
        "effect": 0.0,
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
    settings: Sequence[str],
    decision: Any,
    drift_page: Any,
    metrics: Any,
) -> None:
    """`check` as a pipeline task, in a workdir that may be a store's URI: writes the pages to the kfp artifacts
    `decision` and `drift_page`, and what was found to `metrics`. `recipe` is the name of a recipe, or the text of one.
    """
    with ending("drift_check"), at(workdir) as home:
        monitoring = parse(MonitoringConfig, unpacked(config), where="monitoring")
        result = check(_file_of(recipe), home, log, monitoring, settings=settings)
        for artifact, name in ((decision, "decision.md"), (drift_page, "drift.html")):
            page_file = home.folder / str(result["window"]) / name
            if not page_file.is_file():  # that of a window which was compared before
                home.fetch(f"{result['window']}/{name}")
            text = page_file.read_text(encoding="utf-8") if result["window"] else result["reason"]
            Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
            Path(artifact.path).write_text(text, encoding="utf-8")
    logger.info("%s: %s", result["action"], result["reason"])
    found = {
        "drift_check/drifted_signals": float(len(result["drifted_signals"])),
        "drift_check/effect": result["effect"],
        "drift_check/started": float(result["started_now"]),
    }
    Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
    Path(metrics.path).write_text(json.dumps(found))
    metrics.metadata.update(found)


def _file_of(recipe: str) -> str:
    """The name or path of a recipe; a text is written to a file, always of the same path, since the command of a
    trigger names it and is run again by another pod where it failed."""
    if "\n" not in recipe:
        return recipe
    file = Path(tempfile.gettempdir()) / "bloomery-recipe.yaml"
    write_atomically(file, recipe)
    return str(file)
