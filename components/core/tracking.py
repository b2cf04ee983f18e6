"""MLflow and the run journal: where a step says what it measured while it runs.

The journal is a JSON-lines file beside the run (`BLOOMERY_JOURNAL`), which the launcher shows live; MLflow is used
where `MLFLOW_TRACKING_URI` is set. A tracker that fails warns once and never stops a training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from bloomery.components.core import pipeline_run
from bloomery.components.core.errors import masked

logger = logging.getLogger(__name__)


class Tracker:
    """What one step measures: `history` holds one entry a call of `log`, `shown` what is told in other forms."""

    def __init__(self, stage: str, parameters: dict[str, Any]) -> None:
        self.stage = stage
        self.history: list[dict[str, float]] = []
        self.shown: dict[str, Any] = {}
        self._warned = False
        self._client: Any = None
        self._run_id = ""
        self._own_run = False
        if os.environ.get("MLFLOW_TRACKING_URI"):
            self._try(lambda: self._open(parameters))

    def _open(self, parameters: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        client = MlflowClient()
        pipeline_run.join(client, self.stage)
        run_id = os.environ.get("MLFLOW_RUN_ID", "")
        if not run_id:  # on a backend whose MLflow plugin opened a run for this task, a second one would double it
            tags = {"mlflow.runName": self.stage, "mlflow.parentRunId": os.environ.get(pipeline_run.PARENT, "")}
            experiment = os.environ.get(pipeline_run.EXPERIMENT, "0")
            run_id = client.create_run(
                experiment, tags={key: value for key, value in tags.items() if value}
            ).info.run_id
            self._own_run = True
        self._client, self._run_id = client, run_id
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:6000]) for key, value in _flatten(parameters)]
        for start in range(0, len(flat), 100):  # the limit of one log_batch call
            client.log_batch(run_id, params=flat[start : start + 100])

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record `metrics` (name with unit → value) at training step `step`."""
        self.history.append({"step": step, **metrics})
        journal("progress", self.stage, step=step, metrics=metrics)
        self._log_mlflow(metrics, step)

    def finish(self, metrics: dict[str, float], status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Record the step's results and close the run that was opened here."""
        self._log_mlflow(metrics, 0)
        if self._own_run and self._client is not None:
            self._try(lambda: self._client.set_terminated(self._run_id, status))
        if self._client is not None:
            self._try(lambda: pipeline_run.leave(self._client, self.stage, _allowed(metrics), status))

    def _log_mlflow(self, metrics: dict[str, float], step: int) -> None:
        if self._client is None or not metrics:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        allowed = _allowed(metrics)
        batch = [Metric(name, float(value), now, step) for name, value in allowed.items()]
        self._try(lambda: self._client.log_batch(self._run_id, metrics=batch))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker raises, training goes on
            if not self._warned:
                logger.warning("tracking failed and is left aside for this step: %s", str(error).split("\n")[0][:300])
            self._warned, self._client = True, None


_current: ContextVar[Tracker | None] = ContextVar("tracker", default=None)


@contextlib.contextmanager
def track(stage: str, parameters: dict[str, Any]) -> Iterator[Tracker]:
    """The tracker that `log` writes to inside."""
    tracker = Tracker(stage, parameters)
    token = _current.set(tracker)
    try:
        with sigterm_raises():
            yield tracker
    except (KeyboardInterrupt, SystemExit):
        tracker.finish({}, "KILLED")
        raise
    except BaseException:
        tracker.finish({}, "FAILED")
        raise
    finally:
        _current.reset(token)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM, which a preempted or cancelled pod gets, unwinds the step, so that its run does not stay open for ever.

    A training puts a checkpoint before it. Where somebody else handles the signal, that stands.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that is sent to a group and to each of it comes twice
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def log(metrics: dict[str, float], step: int) -> None:
    """Record `metrics` at `step` with the tracker of the running step; outside of one, do nothing."""
    tracker = _current.get()
    if tracker is not None:
        tracker.log(metrics, step)


def show(name: str, value: Any) -> None:
    """Keep a JSON value of the running step for the report; outside of a step, do nothing."""
    tracker = _current.get()
    if tracker is not None:
        tracker.shown[name] = value


def journal(event: str, stage: str, **facts: Any) -> None:
    """Append one event to the run journal, if there is one; a single write, so that lines of processes do not mix."""
    path = os.environ.get("BLOOMERY_JOURNAL")
    if path:
        line = json.dumps({"time": round(time.time(), 3), "event": event, "stage": stage, **facts}, ensure_ascii=False)
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(masked(line) + "\n")


def _allowed(metrics: dict[str, float]) -> dict[str, float]:
    """By names as MLflow takes them."""
    return {name.replace("@", "_at_").replace("+", ":"): value for name, value in metrics.items()}


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
