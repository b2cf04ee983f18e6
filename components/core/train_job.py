"""A training that several machines share: the task asks Kubeflow Trainer for them, waits, and takes what they made.

The task's environment holds a `TrainJob` (trainer.kubeflow.org/v1alpha1), whole but for its name and its work. The work
(inputs, config) goes to the object store; each machine takes it from there (`node_worker.py`), and the first leaves the
result where the task then looks for it: machines and task share nothing but the store. The name follows from the work
and the pipeline run, so that a task that is tried again waits for the job that is there already. However the task ends,
on SIGTERM too, the job goes with it; where it is killed without one, the job goes when the run's workflow is deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import provenance, s3, tracking, trees
from bloomery.components.core.config import digest
from bloomery.components.core.declare import declared
from bloomery.components.core.errors import BloomeryError, ConfigError, ServiceError

logger = logging.getLogger(__name__)

GIVEN = "BLOOMERY_TRAIN_JOB"
"""Environment: the TrainJob of a task whose training several machines share, as JSON."""
PASSED = (provenance.PIPELINE_RUN, "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
"""Variables that a pod of the pipeline is given when it starts, which its machines need too."""
POD = "KFP_POD_NAME"
"""Environment: the pod of a task, as Kubeflow Pipelines tells it."""
KIND = ("trainer.kubeflow.org", "v1alpha1")
PLURAL = "trainjobs"
CONTAINER = "node"
JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
RANK_LABEL = "batch.kubernetes.io/job-completion-index"
"""Labels of the pods of a job, by which they are found and told apart."""
RUN_LABEL = "pipeline/runid"
"""Label of a job, as of the pods of tasks: the pipeline run that it belongs to."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
WORK = ".work"
"""Behind the place of a result: what it is made from, until it is there."""

POLL_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A log that says nothing for so long is asked for again, after a look at the job."""
ANSWER_SECONDS = 30.0
PATIENCE_SECONDS = 600.0
"""How long Kubernetes may not answer, or an older job of the same name may take to go."""
ADVICE = {
    403: "bind the Role bloomery-train of infra/k8s/components/multi-node to the service account of runs",
    404: "install Kubeflow Trainer 2.2 or later, and infra/k8s/components/multi-node",
}


class Job(NamedTuple):
    """What the task was given."""

    manifest: dict[str, Any]
    nodes: int
    processes: int
    """Of all nodes together."""


def asked(run: Callable[..., Any]) -> Job | None:
    """The job that the step `run` is to leave its training to; None if it is to train here."""
    told = os.environ.get(GIVEN)
    if not told or declared(run).accelerator != "all":
        return None
    manifest = json.loads(told)
    trainer = manifest["spec"]["trainer"]
    return Job(manifest, trainer["numNodes"], trainer["numNodes"] * trainer["numProcPerNode"])


def train(job: Job, uri: str, facts: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
    """Let the machines of `job` put the result of a step at `uri`: `facts` say what it is, for `node_worker`; of an
    input that is a list each of `inputs` has its number in brackets.

    Raises: what a machine failed with, as it told it; ConfigError what Kubernetes refuses; ServiceError if it does not
    answer, or the job is deleted by somebody else; SystemExit on SIGTERM.
    """
    work = f"{uri}{WORK}"
    if s3.text(f"{work}/{trees.MARKER}") is None:
        trees.put(work, inputs, facts, first=True)
    name = f"{facts['step'].split('.')[-2].replace('_', '-')[:24]}-{_key(uri)}"
    launched = _Launched(completed(job.manifest, name, [uri, *inputs], os.environ))
    with tracking.sigterm_raises():
        try:
            launched.begin()
            launched.wait()
        finally:
            launched.delete()
    s3.delete(work)


def completed(
    manifest: Mapping[str, Any], name: str, arguments: list[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """A TrainJob with its name, the arguments of its program, and what its pods need of this one's environment."""
    spec = manifest["spec"]
    passed = [{"name": key, "value": environment[key]} for key in PASSED if environment.get(key)]
    trainer = {**spec["trainer"], "args": arguments, "env": [*spec["trainer"]["env"], *passed]}
    metadata = {**manifest.get("metadata", {}), "name": name}
    if run := environment.get(provenance.PIPELINE_RUN):
        metadata["labels"] = {**metadata.get("labels", {}), RUN_LABEL: run}
    return {**manifest, "metadata": metadata, "spec": {**spec, "trainer": trainer}}


def _key(uri: str) -> str:
    """The same for each attempt of a task of a pipeline run, and for no other."""
    return digest([uri, os.environ.get(provenance.PIPELINE_RUN, "")])[:16]


class _Launched:
    """A TrainJob of the cluster that this process runs in."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.namespace = _connect()
        from kubernetes import client

        self.manifest = manifest
        self.name: str = manifest["metadata"]["name"]
        self.jobs, self.core = client.CustomObjectsApi(), client.CoreV1Api()
        self.is_asked_for = False
        self.heard: dict[str, str] = {}
        """Time of the last line of a pod's log that was passed on."""

    def begin(self) -> None:
        """Create the job, or take the one that an earlier attempt of this task has created."""
        owners = {"ownerReferences": self._owners()}
        wanted = {**self.manifest, "metadata": {**self.manifest["metadata"], **owners}}
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            self.is_asked_for = True
            try:
                made = self._ask(self.jobs.create_namespaced_custom_object, wanted, but=409)
            except ConfigError:
                self.is_asked_for = False
                raise
            trainer = self.manifest["spec"]["trainer"]
            if made is not None:
                told = "TrainJob %s: asked for %d nodes; processes on each: %d"
                logger.info(told, self.name, trainer["numNodes"], trainer["numProcPerNode"])
                return
            found = self._get()
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                logger.info("TrainJob %s of an earlier attempt goes on", self.name)
                return
            time.sleep(POLL_SECONDS)
        raise ServiceError(f"TrainJob {self.name} of an earlier attempt is being deleted, and does not go; look why")

    def wait(self) -> None:
        """Come back when the job is complete; until then tell what its first machine tells, and why it does not run."""
        told = ""
        while True:
            job = self._get()
            if job is None:
                raise ServiceError(f"TrainJob {self.name} is gone: somebody else has deleted it")
            state = {one["type"]: one for one in job.get("status", {}).get("conditions", ()) if one["status"] == "True"}
            if "Complete" in state:
                return
            pods = self._pods()
            if "Failed" in state:
                self._pass_on(pods)
                raise _failure(self.name, pods, state["Failed"])
            waits = _waits(state, pods, self.manifest["spec"]["trainer"]["numNodes"])
            if waits != told:
                logger.info("TrainJob %s: %s", self.name, waits or "all nodes run")
                told = waits
            self._pass_on(pods)
            time.sleep(POLL_SECONDS)

    def delete(self) -> None:
        """Delete the job with all that belongs to it; what hinders it is told, and no error."""
        if not self.is_asked_for:
            return
        try:
            self._ask(self.jobs.delete_namespaced_custom_object, self.name, but=404, patience=ANSWER_SECONDS)
        except BloomeryError as error:
            logger.warning("TrainJob %s may go on, delete it by hand: %s", self.name, error)

    def _owners(self) -> list[dict[str, str]]:
        """What owns the pod of this task, its run's workflow: with that Kubernetes deletes the job, if nobody has."""
        if not (name := os.environ.get(POD)):
            return []
        try:
            pod = self._answered(
                lambda: self.core.read_namespaced_pod(name, self.namespace, _request_timeout=ANSWER_SECONDS),
                404,
                ANSWER_SECONDS,
            )
        except BloomeryError as error:
            logger.warning("TrainJob %s will not go when its run is deleted: %s", self.name, error)
            return []
        owners = pod.metadata.owner_references or () if pod else ()
        return [
            {"apiVersion": one.api_version, "kind": one.kind, "name": one.name, "uid": one.uid} for one in owners
        ]

    def _get(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask(self.jobs.get_namespaced_custom_object, self.name, but=404)
        return found

    def _ask(self, call: Callable[..., Any], what: Any, *, but: int, patience: float = PATIENCE_SECONDS) -> Any:
        """The answer of `call` about the job; None where it is the status `but`. Asks again for what may pass."""
        return self._answered(
            lambda: call(*KIND, self.namespace, PLURAL, what, _request_timeout=ANSWER_SECONDS), but, patience
        )

    def _pods(self) -> list[Any]:
        """The pods of the job that are not on their way out, by the rank of their machine."""
        ours = f"{JOB_LABEL}={self.name}"
        listed = self._answered(
            lambda: self.core.list_namespaced_pod(
                self.namespace, label_selector=ours, _request_timeout=ANSWER_SECONDS
            ),
            None,
            PATIENCE_SECONDS,
        ).items
        left = [pod for pod in listed if pod.metadata.deletion_timestamp is None]
        return sorted(left, key=lambda pod: int(pod.metadata.labels.get(RANK_LABEL, 0)))

    def _answered(self, call: Callable[[], Any], but: int | None, patience: float) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        until = time.monotonic() + patience
        while True:
            try:
                return call()
            except ApiException as error:
                if error.status == but:
                    return None
                if error.status < 500 and error.status != 429:
                    raise _refused(self.name, error) from None
                reason = f"{error.status} {error.reason}"
            except HTTPError as error:
                reason = str(error)[:200]
            if time.monotonic() > until:
                raise ServiceError(f"Kubernetes does not answer about TrainJob {self.name}: {reason}")
            logger.info("Kubernetes, TrainJob %s: %s; again in %.0f s", self.name, reason, POLL_SECONDS)
            time.sleep(POLL_SECONDS)

    def _pass_on(self, pods: Iterable[Any]) -> None:
        """Write what the first machine has logged since the last time, until its log ends or says nothing more."""
        first = next((pod for pod in pods if pod.metadata.labels.get(RANK_LABEL, "0") == "0"), None)
        if first is None or first.status.phase == "Pending":
            return
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        name = first.metadata.name
        since = self.heard.get(name, "")
        seconds = {"since_seconds": _seconds_since(since) + 5} if since else {}
        with contextlib.suppress(ApiException, HTTPError):  # the next look tells what has become of the pod
            answer = self.core.read_namespaced_pod_log(
                name,
                self.namespace,
                container=CONTAINER,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(ANSWER_SECONDS, SILENT_SECONDS),
                **seconds,
            )
            with contextlib.closing(answer):
                for line in answer:
                    at, _, told = line.decode("utf-8", "replace").partition(" ")
                    if at > self.heard.get(name, ""):
                        self.heard[name] = at
                        sys.stderr.write(f"{told.rstrip()}\n")


def _connect() -> str:
    """Find the API of Kubernetes, from a pod or by a kubeconfig; the namespace that this process works in."""
    from kubernetes import config

    try:
        config.load_incluster_config()
        return NAMESPACE.read_text(encoding="utf-8").strip()
    except config.ConfigException:
        pass
    try:
        file = os.environ.get("KUBECONFIG")
        config.load_kube_config(file)
        _, active = config.list_kube_config_contexts(file)
        return str(active["context"].get("namespace", "default"))
    except config.ConfigException as error:
        raise ConfigError(
            f"{GIVEN} is set, and Kubernetes cannot be found: {error}; several machines train in a cluster alone"
        ) from None


def _refused(name: str, error: Any) -> ConfigError:
    """What Kubernetes says of a call that it does not do, and what to do."""
    try:
        told = json.loads(error.body)["message"]
    except (KeyError, TypeError, ValueError):
        told = str(error.body or error.reason)
    advice = ADVICE.get(error.status, "change what it names in `resources` of the recipe")
    return ConfigError(f"Kubernetes refuses TrainJob {name}: {error.status}: {told[:500]}; {advice}")


def _seconds_since(at: str) -> int:
    """Whole seconds since a time as a pod's log tells it."""
    then = datetime.fromisoformat(f"{at[:19]}+00:00")
    return max(1, int((datetime.now(UTC) - then).total_seconds()))


def _waits(state: Mapping[str, Any], pods: list[Any], nodes: int) -> str:
    """What a job waits for that does not run on all its nodes; "" if it does."""
    if "Suspended" in state:
        return f"suspended: {state['Suspended'].get('message', '')}"
    running = [pod for pod in pods if pod.status.phase not in ("Pending", None)]
    if len(running) >= nodes:
        return ""
    reasons = []
    for pod in pods:
        for one in pod.status.conditions or ():
            if one.type == "PodScheduled" and one.status == "False":
                reasons.append(f"{pod.metadata.name}: {one.message}")
        for status in pod.status.container_statuses or ():
            if status.state and status.state.waiting:
                waiting = status.state.waiting
                reasons.append(f"{pod.metadata.name}: {waiting.reason} {waiting.message or ''}".rstrip())
    return "; ".join([f"{len(running)} of {nodes} nodes run", *reasons[:1]])


def _failure(name: str, pods: Iterable[Any], condition: Mapping[str, Any]) -> BloomeryError:
    """Why a job failed, by the last words of its machines: what a user can act on before what the others met then."""
    kinds = {kind.exit_code: kind for kind in BloomeryError.__subclasses__()}
    ended = [
        status.state.terminated
        for pod in pods
        for status in pod.status.container_statuses or ()
        if status.name == CONTAINER and status.state.terminated and status.state.terminated.exit_code
    ]
    for one in sorted(ended, key=lambda one: one.exit_code):
        if one.exit_code in kinds and one.message:
            kind = kinds[one.exit_code]
            return kind(one.message.strip().removeprefix(f"{kind.__name__}: "))
    for one in ended:
        if one.reason == "OOMKilled":
            return ServiceError(
                "a node ran out of its memory: raise resources.memory_per_accelerator, or lower batch_size and raise "
                "gradient_accumulation_steps, or set gradient_checkpointing: true"
            )
    for one in ended:
        if one.message:
            return BloomeryError(one.message.strip())
    told = f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ServiceError(f"TrainJob {name} failed: {told}")
