"""What the tasks of a run on a cluster cost beyond their work: drivers, the start of pods, images, Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bloomery.pipelines import workflows

TOOK = re.compile(r"; (\d+\.\d+) s$")
"""How the last line of a step ends: with the seconds of its work."""
EXECUTOR = re.compile(r"\.executor(\(\d+\))?$")
"""How the name of an attempt at a task ends, after the name of the task."""


@dataclass(frozen=True)
class Overhead:
    """Seconds of tasks that have ended, summed: those that ran beside each other count each."""

    tasks: int
    work: float
    """From the beginning of a step to its end, as it says itself."""
    beyond: float
    """The rest, from the start of each task's driver to the end of its last pod, and the drivers of loops and of tasks
    that the cache of Kubeflow Pipelines has kept."""

    def __str__(self) -> str:
        each = self.beyond / max(1, self.tasks)
        return (
            f"{self.tasks} tasks: {self.work:.0f} s of work, and {self.beyond:.0f} s beyond it (drivers, pods, images, "
            f"Python), {each:.0f} s a task"
        )


def of(workflow: Mapping[str, Any], said: Mapping[str, str]) -> Overhead | None:
    """What the nodes of a workflow show, with the last line of a step by the name of its pod; None where no task that
    has ended tells how long it worked."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for node in workflows.pods(workflow):
        by_task.setdefault(EXECUTOR.sub("", node["name"].removesuffix("-driver")), []).append(node)
    number, work, beyond = 0, 0.0, 0.0
    for nodes in by_task.values():
        lines = [said.get(workflows.pod_name(workflow, node), "") for node in nodes]
        told = [float(found[1]) for line in lines if (found := TOOK.search(line))]
        has_step = any(EXECUTOR.search(node["name"]) for node in nodes)
        spans = [_span(node) for node in nodes]
        if (told or not has_step) and all(end for _, end in spans):
            took = told[-1] if told else 0.0
            number, work = number + has_step, work + took
            beyond += max(end for _, end in spans) - min(start for start, _ in spans) - took
    return Overhead(number, work, beyond) if number else None


def _span(node: Mapping[str, Any]) -> tuple[float, float]:
    """Start and end of a pod in seconds; 0 of what has not happened."""
    start, end = (workflows.time(node, which) for which in ("startedAt", "finishedAt"))
    return start.timestamp() if start else 0.0, end.timestamp() if end else 0.0
