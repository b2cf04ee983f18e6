"""The runs of a workdir, as `bloomery ls` and `bloomery show` tell them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from bloomery.components.core.data.text_metrics import TextMetric
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling.adapter_folders import FOLDER
from bloomery.pipelines import run_outputs

SCORES = tuple(f".{name}" for name in ("accuracy", "perplexity", *get_args(TextMetric)))
"""Endings of the metrics whose error stands beside them."""


def runs(workdir: Path) -> list[dict[str, Any]]:
    """One entry a run, newest first: run, status, seconds, model. A run without a summary was killed."""
    found = []
    for folder in sorted((workdir / "runs").glob("*/"), reverse=True):
        file = folder / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found.append(
            {
                "run": folder.name,
                "status": summary.get("status", "unfinished"),
                "seconds": summary.get("seconds", 0.0),
                "model": summary.get("model"),
            }
        )
    return found


def summary_of(workdir: Path, run: str) -> dict[str, Any]:
    """The summary of a run by its name, or of the last one; ConfigError if there is none."""
    names = [entry["run"] for entry in runs(workdir) if entry["status"] != "unfinished"]
    if not names:
        raise ConfigError(f"{workdir}: no finished runs there; start one with `bloomery run`, or give its --workdir")
    name = names[0] if run == "last" else run
    if name not in names:
        raise ConfigError(f"{workdir}: no finished run {name}; known: {', '.join(names[:5])}")
    return json.loads((workdir / "runs" / name / "summary.json").read_text(encoding="utf-8"))


def describe(summary: dict[str, Any]) -> str:
    """A summary as text: verdict, report, where adapters lie, every stage with its metrics."""
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
