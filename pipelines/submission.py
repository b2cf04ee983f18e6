"""Runs on a cluster: submitted once, followed, explained and ended, through the API of Kubeflow Pipelines."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloomery.components.core import errors, step
from bloomery.components.core.errors import BloomeryError, ConfigError, GateError, ServiceError
from bloomery.pipelines import keys, kubeflow, launch, left_jobs, overhead, workflows
from bloomery.pipelines.kubeflow import Access, connected
from bloomery.pipelines.overhead import Overhead
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
STATES = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "SKIPPED": "left out",
    "FAILED": "failed",
    "CANCELING": "running",
    "CANCELED": "cancelled",
}
"""The API's states in the words of the table; any other is `·`, not begun."""
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Task:
    """A stage of a run on a cluster."""

    stage: str
    state: str
    """One of `STATES`, or `·`."""
    started: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    """What the step said when it failed, or what keeps its pod from running."""
    pods: tuple[str, ...] = ()
    """Names of its pods, oldest first, and after them those that failed."""
    is_reused: bool = False
    """Whether its result is that of an earlier run, as its log says, or the cache of Kubeflow Pipelines, which then
    starts no pod."""

    @property
    def word(self) -> str:
        """Its state, or that it was reused."""
        return "reused" if self.is_reused else self.state

    @property
    def seconds(self) -> float | None:
        """How long it took, or has been running."""
        if self.started is None:
            return None
        return ((self.ended or datetime.now(UTC)) - self.started).total_seconds()


@dataclass(frozen=True)
class Seen:
    """A run on a cluster as the API shows it now."""

    run_id: str
    name: str
    state: str
    tasks: tuple[Task, ...]
    """In the order in which they can run."""
    verdict: str = ""
    """What promotion has told, `promoted: why` or `rejected: why`; '' before, or where its log is gone."""
    overhead: Overhead | None = None
    """What the tasks that have ended cost beyond their work; None where their logs or the workflow are gone."""

    @property
    def outcome(self) -> str:
        """Its verdict, or where there is none its state."""
        return self.verdict or self.state.lower()

    @property
    def failure(self) -> str:
        """The first task that failed with what it said, on one line; '' if none did."""
        return next((f"{task.stage}: {task.message or 'failed'}" for task in self.tasks if task.state == "failed"), "")


def submit(recipe: Recipe, access: Access, key: str | None = None) -> str:
    """Submit the recipe's pipeline; returns the run id.

    The run is named `key`, and where a run of that name is there, its id is returned and none is submitted: so also
    after an answer that was lost, for the API may have made the run all the same.
    Raises: ConfigError with the API's reason for what it refuses, or if the run of that name is one of another
    pipeline, ServiceError if it does not answer.
    """
    name = _run_name(recipe.name, key)
    with tempfile.TemporaryDirectory() as folder, connected(access) as client:
        package = Path(folder) / "pipeline.yaml"
        launch.compile_to(recipe, package)
        return _submitted(client, package, recipe.name, name)


def submit_compiled(package: Path, access: Access, key: str | None = None) -> str:
    """Submit the pipeline in a file, of a recipe or of a search, as `submit` does; its experiment is named after it."""
    pipeline = launch.name_of_compiled(package)
    name = _run_name(pipeline, key)
    with connected(access) as client:
        return _submitted(client, package, pipeline, name)


def _run_name(pipeline: str, key: str | None) -> str:
    if key is not None:
        return keys.check_key(key)
    return f"{pipeline}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def _submitted(client: Any, package: Path, experiment: str, name: str) -> str:
    """The id of the run `name` of the pipeline in a file, which is looked for before each attempt to make it."""
    for wait in (*kubeflow.WAITS, None):
        known = kubeflow.run_named(client, name)
        if known is not None:
            kubeflow.check_pipeline(known, experiment)
            logger.info("%s: the run of this name is there, and none is submitted", name)
            return known.run_id
        try:
            with kubeflow.quietly():
                made = client.create_experiment(experiment)
                return client.run_pipeline(made.experiment_id, name, str(package)).run_id
        except Exception as error:
            if not kubeflow.is_passing(error):
                raise
            reason = kubeflow.reason_of(error)
            if wait is None:
                raise ServiceError(
                    f"Kubeflow Pipelines did not take the run {name}: {reason}; `bloomery submit … --key {name}` "
                    "submits it, or finds it, and never makes two"
                ) from error
            logger.info("submitting %s: %s; is looked for, and submitted again, in %.0f s", name, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def is_unfinished(access: Access, key: str) -> bool:
    """True while the run of that name runs, or waits to. Raises: as `submit`."""
    with connected(access) as client:
        run = kubeflow.run_named(client, key)
        return run is not None and run.state not in ENDED


def cancel(run: str, access: Access) -> str:
    """End a run, given by its id or name; returns what is true then. Raises: as `submit`."""
    with connected(access) as client:
        found = _found(client, run)
        if found.state in ENDED:
            return f"{found.display_name} has ended before: {found.state.lower()}"
        client.terminate_run(found.run_id)
        left = left_jobs.deleted(found, client.get_user_namespace() or "kubeflow")
        told = f"{found.display_name} is being ended; `bloomery status {found.run_id}` shows when it has"
        return f"{told}; {left}" if left else told


def seen(run: str, access: Access) -> Seen:
    """A run, given by its id or name, as the API shows it now. Raises: as `submit`, ConfigError for an unknown run."""
    with connected(access) as client:
        return _seen(client, _found(client, run))


def follow(run: str, access: Access, show: Callable[[dict[str, Any]], None], poll: float = POLL_SECONDS) -> Seen:
    """Show what happens to a run, as events of a journal, until it has ended; returns it as it ended."""
    told: dict[str, str] = {}
    said: dict[str, str] = {}
    with connected(access) as client:
        run_id = _found(client, run).run_id
        while True:
            now = _seen(client, client.get_run(run_id), said)
            for event in events(now, told):
                show(event)
            if now.state in ENDED:
                return now
            time.sleep(poll)


def events(now: Seen, told: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The events of a journal that lead from the states in `told`, which are brought up to date, to what is seen."""
    for task in now.tasks:
        before = told.get(task.stage, "·")
        told[task.stage] = task.state
        facts = {"stage": task.stage, "time": task.started.timestamp() if task.started else time.time()}
        if task.state == "running":
            if before != "running":
                yield {**facts, "event": "started"}
            yield {**facts, "event": "progress", "time": time.time(), "step": 0, "metrics": {}}
        elif task.state in ("done", "left out") and task.state != before:
            ended = {"cached": task.is_reused, "metrics": {}, "seconds": task.seconds or 0.0}
            yield {**facts, "event": "finished", **ended}
        elif task.state in ("failed", "cancelled") and task.state != before:
            yield {**facts, "event": "failed"}
        if task.message and task.state in ("running", "waiting") and told.get(f"{task.stage}:") != task.message:
            told[f"{task.stage}:"] = task.message
            yield {**facts, "event": "warned", "message": task.message}


def logs(run: str, stage: str | None, access: Access) -> str:
    """What the last pod of a stage wrote, or of the stage that failed, else of the last that began.

    Raises: ConfigError for a stage that the run has not, or that has no pod yet; ServiceError if its log is gone; else
    as `submit`.
    """
    from kfp_server_api.exceptions import ApiException

    with connected(access) as client:
        now = _seen(client, _found(client, run))
        task = _chosen(now, stage)
        if not task.pods:
            raise ConfigError(
                f"{task.stage}: the API names no pod of it (it is {_word(task.state)}); `kubectl logs -c main -l "
                f"pipeline/runid={now.run_id}` in the namespace of the run asks Kubernetes"
            )
        try:
            return _log(client, now.run_id, task.pods[-1])
        except ApiException as error:
            raise ServiceError(
                f"{task.stage}: no log of its pod {task.pods[-1]} can be had ({kubeflow.reason_of(error)}); it goes "
                "with the pod, unless the cluster keeps logs elsewhere"
            ) from None


def _word(state: str) -> str:
    return "not begun" if state == "·" else state


def _chosen(now: Seen, stage: str | None) -> Task:
    if stage is not None:
        found = [task for task in now.tasks if stage in (task.stage, task.stage.replace("_", "-"))]
        if not found:
            known = ", ".join(task.stage for task in now.tasks) or "none yet"
            raise ConfigError(f"{now.name}: no stage {stage}; known: {known}")
        return found[0]
    failed = [task for task in now.tasks if task.state == "failed"]
    begun = [task for task in now.tasks if task.pods]
    if not failed and not begun:
        raise ConfigError(f"{now.name}: no stage has begun, so there is no log yet")
    return failed[0] if failed else max(begun, key=lambda task: task.started or datetime.min.replace(tzinfo=UTC))


def _log(client: Any, run_id: str, pod: str, *, once: bool = False) -> str:
    return kubeflow.get(client, f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", once=once).decode("utf-8", "replace")


def _found(client: Any, run: str) -> Any:
    """The API's run of an id or a name. Raises: ConfigError if there is none."""
    try:
        uuid.UUID(run)
    except ValueError:
        found = kubeflow.run_named(client, run)
        if found is None:
            raise ConfigError(f"{run}: no run of this name or id; `bloomery submit` prints the id of each") from None
        run = found.run_id
    return client.get_run(run)


def _seen(client: Any, run: Any, said: dict[str, str] | None = None) -> Seen:
    """A run with its tasks: their states from it, their pods and what these said from its workflow; `said` keeps the
    last lines of its steps' logs, by pod."""
    said = {} if said is None else said
    workflow = workflows.of(client, run.run_id)
    for node in workflows.pods(workflow):
        if node.get("phase") == "Succeeded" and IMPLEMENTATION in node.get("templateName", ""):
            pod = workflows.pod_name(workflow, node)
            if pod not in said:
                said[pod] = _last_told(client, run.run_id, pod, once=True, logger=step.__name__)
    known = workflows.stages(run.pipeline_spec or {}) or workflows.begun(workflow)
    states = {detail.display_name: detail for detail in (run.run_details and run.run_details.task_details) or ()}
    tasks: list[Task] = []
    for key, stage in known.items():
        in_loop = [one for one in known if one.startswith(f"{key}.")]
        task = _task(client, run.run_id, workflow, states, key, stage, said)
        # A loop is told by its tasks, unless it failed and none of them did.
        if not in_loop or (task.state == "failed" and not any(one.state == "failed" for one in tasks)):
            tasks.append(task)
    judged = next((task for task in tasks if task.stage == "promotion" and task.state == "done" and task.pods), None)
    verdict = _last_told(client, run.run_id, judged.pods[-1], logger=PROMOTION) if judged else ""
    return Seen(
        run.run_id, run.display_name, run.state or "PENDING", tuple(tasks), verdict, overhead.of(workflow, said)
    )


def _task(
    client: Any,
    run_id: str,
    workflow: dict[str, Any],
    states: dict[str, Any],
    key: str,
    stage: str,
    said: dict[str, str],
) -> Task:
    """The task at a place in the workflow."""
    detail = states.get(key) or workflows.detail(workflow, key)
    nodes = workflows.nodes(workflow, key)
    driver = states.get(f"{key}-driver") or workflows.detail(workflow, f"{key}-driver")
    if driver is not None and driver.state == "FAILED":
        detail, nodes = driver, workflows.nodes(workflow, f"{key}-driver")
    pods = tuple(workflows.pod_name(workflow, node) for node in nodes if node.get("type") == "Pod")
    state = STATES.get(detail.state, "·") if detail else "·"
    message = _message(nodes) if state in ("failed", "running", "waiting") else ""
    if state == "failed" and not message and pods:
        message = _last_told(client, run_id, pods[-1], level="ERROR")
    is_reused = state == "done" and bool(workflows.pods(workflow)) and _is_reused(workflow, nodes, said)
    times = (_time(detail and detail.start_time), _time(detail and detail.end_time))
    return Task(stage, state, *times, message, pods, is_reused)


IMPLEMENTATION = "container-impl"
"""What the template of a pod that runs a step is called, and that of no driver."""


def _is_reused(workflow: dict[str, Any], nodes: list[dict[str, Any]], said: dict[str, str]) -> bool:
    """Whether every pod that ended well for a task says so in its log, or there is none: a cached task has no pod."""
    return all(
        f": {step.REUSED}" in said.get(workflows.pod_name(workflow, node), "")
        for node in nodes
        if node.get("phase") == "Succeeded" and IMPLEMENTATION in node.get("templateName", "")
    )


def _time(value: datetime | None) -> datetime | None:
    """A time of the API; what has not happened has the year 1."""
    if value is None or value.year < 1971:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


EXIT = re.compile(r"^(?:main: )?\w+ \(exit code \d+\):?\s*")
"""What Argo writes before the words that a container left behind."""


def _message(nodes: list[dict[str, Any]]) -> str:
    """What the last pod left behind, or waits for, on one line; '' if it is an exit code alone."""
    said = str(nodes[-1].get("message") or "") if nodes else ""
    told = EXIT.sub("", said)
    return " ".join((told or ("" if "Error (exit" in said else said)).split())[:500]


PROMOTION = "bloomery.components.promotion.step"
"""The logger whose last line is the verdict. The API tells neither metrics nor artifacts of a task (2.17)."""


def _last_told(client: Any, run_id: str, pod: str, *, once: bool = False, **wanted: str) -> str:
    """The last message with the `wanted` facts of a pod's log, whose lines are JSON; '' if there is none, or no log."""
    from kfp_server_api.exceptions import ApiException

    with contextlib.suppress(ApiException):
        for line in reversed(_log(client, run_id, pod, once=once).splitlines()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                told = json.loads(line)
                if all(told[fact] == value for fact, value in wanted.items()):
                    return " ".join(str(told["message"]).split())[:500]
    return ""


KIND = re.compile(r"(?<=: )(\w+Error): ")
"""How a step's last words begin: with the kind of its error, which has an exit code."""


def raise_for(now: Seen) -> None:
    """Raise why a run has not ended well, as `bloomery run` would: a stage's error, or the gate's refusal.

    Raises: BloomeryError, of the kind that the stage told; GateError if the candidate was rejected.
    """
    if now.verdict.startswith("rejected"):
        raise GateError(f"{now.name}: {now.verdict}")
    if now.state not in ENDED or now.state == "SUCCEEDED":
        return
    told = now.failure or f"the run {now.name} ended {now.state.lower()}"
    kind = KIND.search(told)
    known = getattr(errors, kind[1], None) if kind else None
    if known is None:
        raise BloomeryError(told)
    raise known(KIND.sub("", told, count=1))


def raise_unless_known(now: Seen) -> None:
    """Raise ServiceError if a run has judged a candidate, and what it came to cannot be read."""
    if not now.verdict and any(task.stage == "promotion" and task.state == "done" for task in now.tasks):
        raise ServiceError(
            f"{now.name}: succeeded, but the API does not show the log of its promotion, so whether the candidate was "
            "promoted is not known here; MLflow has it: `bloomery models list`"
        )
