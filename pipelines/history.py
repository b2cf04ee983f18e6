"""The runs of a workdir, as `bloomery ls` and `bloomery show` tell them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from bloomery.components.core.data.text_metrics import TextMetric
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling.adapter_folders import FOLDER
from bloomery.pipelines import run_outputs, workdirs
from bloomery.pipelines.progress import course

SUMMARY = "summary.json"
"""In the folder of each run that came to a verdict, or failed."""
SCORES = tuple(f".{name}" for name in ("accuracy", "perplexity", *get_args(TextMetric)))
"""Endings of the metrics whose error stands beside them."""


def runs(workdir: Path) -> list[dict[str, Any]]:
    """One entry a run, newest first: run, status, seconds, model, and `at`, the stage of one that did not finish."""
    since = workdirs.held_since(workdir)
    return [_entry(folder, since) for folder in sorted((workdir / "runs").glob("*/"), reverse=True)]


def _entry(folder: Path, since: float) -> dict[str, Any]:
    """Of a run without a summary what its journal tells; it goes on if it began when the workdir was held, `since`."""
    entry: dict[str, Any] = {"run": folder.name, "status": "", "seconds": 0.0, "model": None, "at": ""}
    if (folder / SUMMARY).is_file():
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return entry | {name: summary[name] for name in ("status", "seconds", "model")}
    events = list(run_outputs.events_of(folder))
    status = next((event["status"] for event in events if event["event"] == "ended"), "")
    is_running = not status and folder.stat().st_mtime >= since
    entry["status"] = status or ("running" if is_running else "ended without a word")
    if events:
        entry["seconds"] = round((time.time() if is_running else events[-1]["time"]) - events[0]["time"], 1)
    if status != "finished":
        entry["at"] = _at([event for event in events if event["event"] in ("started", "progress")])
    return entry


def _at(events: list[dict[str, Any]]) -> str:
    """The stage that was begun last, and how far its training has come."""
    if not events:
        return ""
    last = events[-1]
    begun = next((event["time"] for event in events if event["stage"] == last["stage"]), last["time"])
    return f"{last['stage']} {course(last, last['time'] - begun) if last['event'] == 'progress' else ''}".strip()


def line(entry: dict[str, Any]) -> str:
    """One of `runs` as a line."""
    model = entry["model"]
    told = f"{model['name']} v{model['version']}" if model else entry["at"]
    return f"{entry['run']:<48} {entry['status']:<11} {entry['seconds']:>7.0f} s  {told}".rstrip()


def shown(workdir: Path, run: str) -> dict[str, Any]:
    """The summary of a run by its name, or of the last one; of one that has none, its entry in `runs`. ConfigError if
    there is no such run."""
    entries = {entry["run"]: entry for entry in runs(workdir)}
    name = next(iter(entries), run) if run == "last" else run
    has_none = name in entries and not (workdir / "runs" / name / SUMMARY).is_file()
    return entries[name] if has_none else summary_of(workdir, name)


def summary_of(workdir: Path, run: str) -> dict[str, Any]:
    """The summary of a run by its name, or of the last one that has one; ConfigError if there is none."""
    names = sorted((file.parent.name for file in (workdir / "runs").glob(f"*/{SUMMARY}")), reverse=True)
    if not names:
        raise ConfigError(f"{workdir}: no finished runs there; start one with `bloomery run`, or give its --workdir")
    name = names[0] if run == "last" else run
    if name not in names:
        raise ConfigError(f"{workdir}: no finished run {name}; known: {', '.join(names[:5])}")
    return json.loads((workdir / "runs" / name / SUMMARY).read_text(encoding="utf-8"))


def describe(summary: dict[str, Any]) -> str:
    """A summary as text: verdict, report, where adapters lie, every stage with its metrics; or what else `shown` found,
    as its line."""
    if "stages" not in summary:
        return line(summary)
    lines = [
        f"{summary['status']}: {summary['reason']}",
        f"{summary['seconds']:.0f} s, report: {summary['report']}",
        *(f"adapter of {stage}: {folder}" for stage, folder in _adapters(Path(summary["run"]))),
        "",
    ]
    for stage, metrics in summary["stages"].items():
        lines.append(stage + (" (reused)" if stage in summary["cached_steps"] else ""))
        for name, value in metrics.items():
            if not name.endswith((".stderr", ".n")):
                error = (
                    metrics.get(name.rsplit(".", 1)[0] + ".stderr")
                    if name.endswith(SCORES)
                    else None
                )
                lines.append(
                    f"  {name.split('/')[-1]:<48} {value:>12.5g}" + (f" ± {error:.2g}" if error is not None else "")
                )
    return "\n".join(lines)


def _adapters(run_dir: Path) -> Iterator[tuple[str, Path]]:
    """Each stage of a run that trained an adapter, with the folder of it."""
    for output in run_outputs.read(run_dir)[2].values():
        if (output.path / FOLDER).is_dir() and output.manifest.config.get("adapter"):
            yield output.stage, output.path / FOLDER
