"""The MLflow run of a run on this machine, under which those of its steps nest: opened and closed by processes of their
own, which the forks' server (`fork_server.py`) has MLflow ready for, so that the launcher need not import it.

`python -m bloomery.pipelines.parent_run FOLDER` does what `asked.json` in it says and writes `told.json`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import pipeline_run
from bloomery.components.core.registry import mlflow_client

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """Of a search: a run that nests under the one of its study, with the settings that it tries as parameters."""

    study: str
    settings: dict[str, Any]


def opened(recipe: str, run_dir: Path, tags: dict[str, str], trial: Trial | None = None) -> None:
    """Open the run for what runs in `run_dir`, and name it to the tasks.

    Raises: what `mlflow_client.refused` makes of it if MLflow does not answer: better now than after the training.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        os.environ.update(_told(run_dir, {"recipe": recipe, "tags": tags, "trial": trial}))
    except RuntimeError as error:
        raise mlflow_client.refused("tracking server", str(error)) from None


def closed(run_dir: Path, status: str, summary: Mapping[str, Any] | None = None) -> None:
    """End the run, if one was opened, and tell it what a summary of it says; what MLflow does not take is logged."""
    if pipeline_run.PARENT not in os.environ:
        return
    try:
        _told(run_dir, {"status": status, "summary": summary})
    except RuntimeError as error:
        logger.warning("the run was not closed in MLflow: %s", error)


def _told(run_dir: Path, asked: dict[str, Any]) -> dict[str, str]:
    """What a process told whom this was asked. Raises: RuntimeError with the reason why it could not."""
    with tempfile.TemporaryDirectory() as folder, (run_dir / "pipeline.log").open("ab") as log:
        Path(folder, "asked.json").write_text(json.dumps({"run_dir": str(run_dir), **asked}), encoding="utf-8")
        subprocess.run([sys.executable, "-m", __name__, folder], stdout=log, stderr=log)
        try:
            told: dict[str, str] = json.loads(Path(folder, "told.json").read_text(encoding="utf-8"))
        except OSError:
            raise RuntimeError(f"a process that spoke to MLflow has died; see {run_dir / 'pipeline.log'}") from None
    if "error" in told:
        raise RuntimeError(told["error"])
    return told


def _open(run_dir: Path, recipe: str, tags: dict[str, str], trial: Sequence[Any] | None) -> dict[str, str]:
    """The variables of the environment that name the run."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    workdir, uri = run_dir.parent.parent, os.environ["MLFLOW_TRACKING_URI"]
    location = str(workdir / "mlartifacts") if uri.startswith("sqlite") else None
    if trial:
        study, settings = trial
        tags = tags | {"mlflow.parentRunId": pipeline_run.of_study(client, recipe, study, location)}
    run = pipeline_run.opened(client, recipe, run_dir.name, tags, location)
    if trial:
        client.log_batch(run, params=[Param(key, str(value)) for key, value in settings.items()])
    if uri == f"sqlite:///{workdir / 'mlflow.db'}":  # the workdir is held by this run: what is open there has died
        pipeline_run.end_others(client)
    return {name: os.environ[name] for name in (pipeline_run.EXPERIMENT, pipeline_run.PARENT)}


def _close(run_dir: Path, status: str, summary: Mapping[str, Any] | None) -> dict[str, str]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    client, run = MlflowClient(), os.environ[pipeline_run.PARENT]
    if summary is not None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{stage}.{name}".replace("@", "_at_"), value, now, 0)
            for stage, values in summary["stages"].items()
            for name, value in values.items()
            if value == value
        ]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run, metrics=metrics[start : start + 1000])
        tags = {"status": summary["status"], "cached_steps": ",".join(summary["cached_steps"])}
        client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])
        if summary["report"]:
            client.log_artifact(run, summary["report"])
    pipeline_run.end_what_is_open(client)  # a step that was killed has not told so
    client.set_terminated(run, status)
    return {}


def main(folder: Path) -> None:
    """Do what `asked.json` in `folder` says."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    run_dir = Path(asked.pop("run_dir"))
    try:
        told = _open(run_dir, **asked) if "recipe" in asked else _close(run_dir, **asked)
    except Exception as error:
        told = {"error": str(error).split("\n")[0][:300]}
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
