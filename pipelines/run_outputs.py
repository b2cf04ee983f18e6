"""What a run left: the events of its journal, the artifacts that they name, and its evaluations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError


class Output(NamedTuple):
    """An artifact that a finished stage left and that is whole."""

    stage: str
    name: str
    path: Path
    manifest: artifact.Manifest


VARIANT = "ptq_"
"""What the names of the quantised variants begin with, in stages and in those of their evaluations."""

Outputs = dict[tuple[str, str], Output]
"""By stage and name."""


def read(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any], Outputs]:
    """(events in order, the `finished` event of each stage, whole artifacts) of the journal in `run_dir`."""
    events = list(events_of(run_dir))
    finished = {event["stage"]: event for event in events if event["event"] == "finished"}
    return events, finished, {(output.stage, output.name): output for output in _outputs(finished)}


def events_of(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of the journal in `run_dir`; the last one of a killed run may be cut off."""
    journal = run_dir / "journal.jsonl"
    for line in journal.read_text(encoding="utf-8").split("\n") if journal.is_file() else []:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _outputs(finished: dict[str, Any]) -> Iterator[Output]:
    for stage, event in finished.items():
        for name, path in event["outputs"].items():
            with contextlib.suppress(DataError):
                yield Output(stage, name, Path(path), artifact.read_manifest(Path(path)))


def results(outputs: Outputs) -> dict[str, list[dict[str, Any]]]:
    """The eval_result/2 rows of each evaluated model, without the repeats and the variants that ptq chose among."""
    return {
        output.stage.removeprefix("evaluation_"): [
            row for row in artifact.read_table(output.path, "eval_result/2").to_pylist() if row["repeat"] == 0
        ]
        for output in outputs.values()
        if output.manifest.schema_name == "eval_result/2" and not output.stage.startswith(f"evaluation_{VARIANT}")
    }


def chain(summary: dict[str, Any]) -> list[str]:
    """The models of a run in the order in which they are made, as `results` names them."""
    evaluated = [name for name in summary.get("chain", []) if name.startswith("evaluation_")]
    return [name.removeprefix("evaluation_") for name in evaluated]


def tasks(outputs: Outputs) -> dict[str, Any]:
    """The task configs by name; none if preflight left none."""
    known = outputs.get(("preflight", "tasks"))
    return json.loads((known.path / "tasks.json").read_text(encoding="utf-8")) if known else {}
