"""What a run is doing: its journal, followed live and asked afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bloomery.components.core import errors
from bloomery.components.core.errors import BloomeryError

POLL_SECONDS = 0.2
LINE_SECONDS = 60.0
"""How often a stage that is at work has a line, where lines are all there is."""


class Journal:
    """The JSON lines that the steps of one run append to."""

    def __init__(self, path: Path, show: Callable[[dict[str, Any]], None]) -> None:
        self._path = path
        self._show = show
        self._read = 0
        path.touch()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Call `show` with every event as it is written, from a thread of its own."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(POLL_SECONDS):
                self._pass_on()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._pass_on()

    def _pass_on(self) -> None:
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].split(b"\n"):
            if line:
                self._show(json.loads(line))

    def events(self) -> list[dict[str, Any]]:
        """Every event so far."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").split("\n") if line]

    def finished(self) -> dict[str, dict[str, Any]]:
        """The `finished` event of each stage that finished."""
        return {event["stage"]: event for event in self.events() if event["event"] == "finished"}

    def lacking(self, stages: Sequence[str]) -> BloomeryError | None:
        """The error of a run that was said to have succeeded, where one of `stages` has not finished: kfp takes a
        container that is gone before it was asked how it ended for one that ended well."""
        lacking = [stage for stage in stages if stage not in self.finished()]
        if not lacking:
            return None
        return self.failure() or BloomeryError(f"{lacking[0]}: its task ended without a result; see pipeline.log")

    def failure(self) -> BloomeryError | None:
        """The error that ended the run, or None if no stage told one before it ended."""
        events = self.events()
        for event in reversed(events):
            if event["event"] == "failed":
                kind = getattr(errors, event["error"], BloomeryError)
                told = event["message"] if kind is not BloomeryError else f"{event['error']}\n{event['message']}"
                return kind(f"{event['stage']}: {told}")
        finished = {event["stage"] for event in events if event["event"] == "finished"}
        open_stages = [
            event["stage"] for event in events if event["event"] == "started" and event["stage"] not in finished
        ]
        if open_stages:
            return BloomeryError(
                f"{open_stages[-1]}: the process ended without a word (killed, or out of memory); run again: "
                "finished steps are reused"
            )
        return None


def headline(metrics: dict[str, float], limit: int = 3) -> str:
    """The first metrics that say how good something is, for a line of progress."""
    telling = [
        f"{name.split('/')[-1]} {value:.4g}"
        for name, value in metrics.items()
        if not name.endswith((".stderr", ".n", "_bytes", "_stderr"))
    ]
    return ", ".join(telling[:limit])


def course(event: dict[str, Any], seconds: float) -> str:
    """How far a training has come, by an event of its progress `seconds` after it began."""
    metrics, step = event["metrics"], event["step"]
    parts = [f"loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:.0f} tokens/s")
    total = metrics.get("num_steps")
    if total and step:
        parts.append(f"{step}/{total:.0f}, {seconds / step * (total - step):.0f} s left")
    return ", ".join(parts)


def _stderr() -> IO[str]:
    """A stream of its own to where stderr leads now: during a run, stderr itself leads to the log of kfp."""
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")


class Lines:
    """Progress as plain lines on stderr, for CI and pods: one for each stage that ends, each of its warnings, and now
    and then how far a training has come."""

    def __init__(self) -> None:
        self._stream = _stderr()
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        if event["event"] == "started":
            self._started[stage] = self._told[stage] = event["time"]
        elif event["event"] == "progress":
            if event["time"] - self._told.setdefault(stage, event["time"]) >= LINE_SECONDS:
                self._told[stage] = event["time"]
                seconds = event["time"] - self._started.get(stage, event["time"])
                print(f"{stage:<20} running {seconds:>6.1f} s  {course(event, seconds)}", file=self._stream)
        elif event["event"] == "finished":
            state = "reused" if event["cached"] else "done"
            print(f"{stage:<20} {state:<7} {event['seconds']:>6.1f} s  {headline(event['metrics'])}", file=self._stream)
            for warning in event.get("warnings", ()) if event["cached"] else ():
                print(f"{stage:<20} warns: {warning}", file=self._stream)
        elif event["event"] == "warned":
            print(f"{stage:<20} warns: {event['message']}", file=self._stream)
        elif event["event"] == "failed":
            print(f"{stage:<20} failed", file=self._stream)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


class Live:
    """Progress as a live table on a terminal: every stage with its state, seconds, current loss, speed and time
    left."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._rows: dict[str, tuple[str, str, str]] = {stage: ("·", "", "") for stage in stages}
        self._started: dict[str, float] = {}
        self._live = RichLive(
            self._table(),
            console=Console(file=_stderr(), force_terminal=True),
            refresh_per_second=4,
            # What kfp and the steps print goes to the file that the launcher opens for it, not above the table.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def __call__(self, event: dict[str, Any]) -> None:
        stage, kind = event["stage"], event["event"]
        if kind == "started":
            self._started[stage] = event["time"]
            self._rows[stage] = ("running", "", "")
        elif kind == "progress":
            seconds = event["time"] - self._started.get(stage, event["time"])
            self._rows[stage] = ("running", f"{seconds:.0f}", course(event, seconds))
        elif kind == "finished":
            state = "reused" if event["cached"] else "done"
            self._rows[stage] = (state, f"{event['seconds']:.1f}", headline(event["metrics"]))
            for warning in event.get("warnings", ()) if event["cached"] else ():
                self._warn(stage, warning)
        elif kind == "warned":
            self._warn(stage, event["message"])
        elif kind == "failed":
            self._rows[stage] = ("failed", "", "")
        self._live.update(self._table())

    def _warn(self, stage: str, message: str) -> None:
        self._live.console.print(f"{stage} warns: {message}", style="yellow", markup=False, highlight=False)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name, style in (("stage", "bold"), ("state", ""), ("seconds", ""), ("", "dim")):
            table.add_column(name, style=style, justify="right" if name == "seconds" else "left")
        colours = {"done": "green", "reused": "cyan", "running": "yellow", "failed": "red", "·": "dim"}
        for stage, (state, seconds, told) in self._rows.items():
            table.add_row(stage, f"[{colours[state]}]{state}[/]", seconds, told)
        return table

    def close(self) -> None:
        """Leave the last table on the screen."""
        self._live.stop()
