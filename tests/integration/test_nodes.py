"""A training that several nodes share: the task that asks Kubeflow Trainer for them, and the nodes themselves."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from trainer_api import NAMESPACE, TrainerAPI

from bloomery.components.core import artifact, s3, train_job, trees, unfinished
from bloomery.components.core.errors import BloomeryError, ConfigError, DataError, ServiceError
from bloomery.components.core.step import execute, run_step
from bloomery.infra.train_jobs import train_job as asked_for

STEP = """
import logging
from pathlib import Path
from typing import Annotated
from bloomery.components.core import artifact, processes
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.config import Config
from bloomery.components.core.declare import declare

class AddConfig(Config):
    factor: int = 1

@declare(accelerator="all")
def run(config: AddConfig, *, numbers: Annotated[list[Path], Reads("n/1")], total: Annotated[Path, Writes("t/1")]
        ) -> dict:
    from torch import distributed
    distributed.init_process_group("gloo")
    mine = sum(int((folder / "n").read_text()) for folder in numbers) * config.factor * (processes.rank() + 1)
    found = processes.gathered([mine])
    logging.getLogger("bloomery.add").info("all of %d are here", len(found))
    processes.leave()
    total.mkdir(parents=True)
    (total / "t").write_text(str(sum(found)))
    artifact.seal(total, "t/1")
    return {"add/total": float(sum(found)), "add/processes": float(len(found))}
"""


class Task:
    """A task of a pipeline as its pod runs it, in a cluster that `api` is the API of."""

    def __init__(self, folder: Path, monkeypatch, object_store, api: TrainerAPI) -> None:
        self.folder, self.api = folder, api
        package = folder / "code" / f"steps{os.urandom(4).hex()}" / "add"
        package.mkdir(parents=True)
        for place in (package.parent, package):
            (place / "__init__.py").write_text("")
        (package / "step.py").write_text(STEP)
        monkeypatch.syspath_prepend(folder / "code")
        self.inputs = {"numbers": [folder / "3", folder / "4"]}
        for number in self.inputs["numbers"]:
            number.mkdir()
            (number / "n").write_text(number.name)
            artifact.seal(number, "n/1")
        self.run = __import__(f"{package.parent.name}.add.step", fromlist=["run"]).run
        job = asked_for(
            image="cpu",
            nodes=2,
            accelerators={},
            size=("2", "1", "4Gi"),
            environment={"BLOOMERY_STORE": object_store.uri, "PYTHONPATH": str(folder / "code")},
            keys=("HF_TOKEN",),
            secret="bloomery-credentials",
            labels={"kueue.x-k8s.io/queue-name": "bloomery"},
            node_pool={},
            tolerations=[],
            shm_gib=8,
        )
        told = {
            "KUBECONFIG": str(api.kubeconfig(folder / "kubeconfig")),
            "BLOOMERY_STORE": object_store.uri,
            "BLOOMERY_PIPELINE_RUN": "run-1",
            train_job.GIVEN: json.dumps(job),
        }
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(train_job, "POLL_SECONDS", 0.02)

    def go(self, name: str = "pod") -> dict:
        return execute(self.run, "add", {"factor": 10}, self.inputs, {"total": self.folder / name / "total"})

    def total(self, name: str = "pod") -> str:
        return (self.folder / name / "total" / "t").read_text()

    def leave_result(self, job: dict) -> None:
        """Do what the nodes of a job do: put a result where it says."""
        made = self.folder / f"made-{os.urandom(4).hex()}"
        made.mkdir()
        (made / "t").write_text("210")
        artifact.seal(made, "t/1")
        facts = {"metrics": {"add/total": 210.0}, "history": [], "shown": {}, "warnings": [], "cached": False}
        trees.put(job["spec"]["trainer"]["args"][0], {"total": made}, facts)


@pytest.fixture
def api():
    with TrainerAPI() as server:
        yield server


@pytest.fixture
def task(tmp_path, monkeypatch, object_store, api, caplog):
    caplog.set_level(logging.INFO, "bloomery")
    return Task(tmp_path, monkeypatch, object_store, api)


def until(is_so) -> None:
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never was so")


class Nodes:
    """Trainer, JobSet, the kubelets and the nodes: what a job asks for runs as processes of this machine."""

    def __init__(self, object_store) -> None:
        self.given = object_store.environment()

    def __call__(self, api: TrainerAPI, job: dict) -> None:
        trainer = job["spec"]["trainer"]
        told = {one["name"]: one.get("value", self.given.get(one["name"], "")) for one in trainer["env"]}
        common = {**os.environ, **{name: value for name, value in told.items() if value}}
        common.pop(train_job.GIVEN, None)
        common |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        common |= {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        started = [
            subprocess.Popen(
                command, env={**common, "PET_NODE_RANK": str(rank)}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            for rank in range(trainer["numNodes"])
        ]
        names = [api.pod(job, rank) for rank in range(len(started))]
        for line in started[0].stderr:
            api.tell(names[0], line.decode().rstrip())
        told = [process.communicate()[1] for process in started]
        codes = [process.returncode for process in started]
        for rank, code in enumerate(codes):
            api.pod(job, rank, "Failed" if code else "Succeeded", terminated={"exitCode": code})
        api.condition(job, "Failed" if any(codes) else "Complete", message=str((codes, told[1])))


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_two_nodes_make_what_the_task_then_has(task, object_store, capsys):
    task.api.play = Nodes(object_store)
    result = task.go()
    assert result["metrics"] == {"add/total": 210.0, "add/processes": 2.0} and not result["cached"]
    assert task.total() == "210"  # (3 + 4) * 10 * 1 of the first and * 2 of the second
    assert "all of 2 are here" in capsys.readouterr().err
    assert [name for name in object_store.objects() if train_job.WORK in name or ".checkpoints" in name] == []
    until(lambda: not task.api.jobs)
    assert task.go("again")["cached"]
    created = [asked for asked in task.api.asked if asked.startswith("POST")]
    assert len(created) == 1 and f"namespaces/{NAMESPACE}/" in created[0]
    # What the Role bloomery-train of infra/k8s allows, and no more.
    calls = {re.sub(r" /.*/(trainjobs|pods)(/[^/]+)?(/log)?$", r" \1\3", asked) for asked in task.api.asked}
    assert calls == {"POST trainjobs", "GET trainjobs", "DELETE trainjobs", "GET pods", "GET pods/log"}


def complete(task: Task):
    def play(api: TrainerAPI, job: dict) -> None:
        task.leave_result(job)
        api.condition(job, "Complete")

    return play


def test_an_attempt_after_the_first_waits_for_the_job_that_is_there(task, caplog):
    process = get_context("fork").Process(target=task.go)
    process.start()
    until(lambda: task.api.jobs)
    process.kill()
    process.join()
    (job,) = task.api.jobs.values()
    goes_on = f"TrainJob {job['metadata']['name']} of an earlier attempt goes on"

    def ends() -> None:
        until(lambda: goes_on in caplog.messages)
        complete(task)(task.api, job)

    threading.Thread(target=ends, daemon=True).start()
    assert task.go("second")["metrics"] == {"add/total": 210.0}
    assert [asked.split()[0] for asked in task.api.asked if "trainjobs" in asked].count("POST") == 2  # the second: 409


WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "mine-x7k2p", "uid": "a1b2"}


@pytest.mark.parametrize("fault", [None, ("GET /api/v1/namespaces/team-a/pods/mine-pod", 403, "pods is forbidden")])
def test_the_job_belongs_to_the_workflow_of_the_run(fault, task, monkeypatch, caplog):
    monkeypatch.setenv("KFP_POD_NAME", "mine-pod")
    owners = [{**WORKFLOW, "controller": True, "blockOwnerDeletion": True}]
    task.api.pods["mine-pod"] = {"metadata": {"name": "mine-pod", "labels": {}, "ownerReferences": owners}}
    task.api.faults = [fault] if fault else []
    seen = []

    def play(api: TrainerAPI, job: dict) -> None:
        seen.append(job["metadata"]["ownerReferences"])
        complete(task)(api, job)

    task.api.play = play
    assert task.go()["metrics"] == {"add/total": 210.0}
    assert seen == [[] if fault else [WORKFLOW]]
    assert any("will not go when its run is deleted" in told for told in caplog.messages) == bool(fault)


def test_a_job_on_its_way_out_is_waited_for_and_then_made_anew(task):
    made = []
    task.api.goes.clear()

    def play(api: TrainerAPI, job: dict) -> None:
        made.append(job)
        if len(made) == 1:
            api.condition(job, "Failed", "DeadlineExceeded", "too long")
            return
        complete(task)(api, job)

    task.api.play = play
    with pytest.raises(ServiceError, match="DeadlineExceeded: too long"):
        task.go()
    posts = len(task.api.asked)
    process = get_context("fork").Process(target=lambda: task.go("second"))
    process.start()
    until(lambda: len([asked for asked in task.api.asked[posts:] if asked.startswith("POST")]) > 2)
    assert len(made) == 1
    task.api.goes.set()
    process.join()
    assert process.exitcode == 0 and len(made) == 2 and task.total("second") == "210"


def failing(*ended: dict, reason: str = "", message: str = ""):
    def play(api: TrainerAPI, job: dict) -> None:
        for rank, state in enumerate(ended):
            api.pod(job, rank, "Failed", terminated=state)
        api.condition(job, "Failed", reason, message)

    return play


PEER = {"exitCode": 1, "message": "RuntimeError: connection closed by peer"}


@pytest.mark.parametrize(
    ("play", "kind", "message"),
    [
        (failing(PEER, {"exitCode": 3, "message": "add: no chat fits\n"}), DataError, "add: no chat fits"),
        (failing({"exitCode": 137, "reason": "OOMKilled"}, PEER), ServiceError, "raise resources.memory_per_accelera"),
        (failing(PEER), BloomeryError, "RuntimeError: connection closed by peer"),
        (failing(reason="X", message="no runtime bloomery"), ServiceError, "failed: X: no runtime bloomery"),
    ],
)
def test_what_a_node_failed_with_is_what_the_task_fails_with(task, play, kind, message):
    task.api.play = play
    with pytest.raises(BloomeryError, match=message) as raised:
        task.go()
    assert type(raised.value) is kind
    until(lambda: not task.api.jobs)


def test_it_is_one_message_and_the_exit_code(task, capsys):
    task.api.play = failing({"exitCode": 3, "message": "add: no chat fits"})
    with pytest.raises(SystemExit) as ended:
        run_step(task.run, "add", {}, task.inputs, {"total": task.folder / "pod" / "total"})
    assert ended.value.code == 3
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("E ")]
    assert told == ["E bloomery.components.core.step: add: no chat fits"]


def test_a_task_that_is_cancelled_takes_its_job_along(task):
    def play(api: TrainerAPI, job: dict) -> None:
        api.tell(api.pod(job, 0), "trains")

    task.api.play = play
    process = get_context("fork").Process(target=task.go)
    process.start()
    until(lambda: any(asked.endswith("/log") for asked in task.api.asked))
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    until(lambda: not task.api.jobs)
    assert task.api.asked[-1].startswith("DELETE")


def test_a_line_of_the_log_is_told_once_however_often_it_breaks(task, monkeypatch, capsys):
    monkeypatch.setattr(train_job, "SILENT_SECONDS", 0.1)

    def play(api: TrainerAPI, job: dict) -> None:
        pod = api.pod(job, 0)
        for number in range(3):
            api.tell(pod, f"step {number}")
            seen = len(api.asked)
            until(lambda seen=seen: any(asked.endswith("/log") for asked in api.asked[seen:]))  # after a silence
        api.tell(pod, "the end")
        api.pod(job, 0, "Succeeded")
        task.leave_result(job)
        api.condition(job, "Complete")

    task.api.play = play
    task.go()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("step", "the end"))]
    assert told == ["step 0", "step 1", "step 2", "the end"]


def test_why_it_does_not_run_yet_is_told(task, caplog):
    def play(api: TrainerAPI, job: dict) -> None:
        def told(text: str) -> bool:
            return any(text in message for message in caplog.messages)

        api.condition(job, "Suspended", "Suspended", "waits in the queue bloomery")
        until(lambda: told("suspended: waits in the queue bloomery"))
        unschedulable = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient nvidia.com/gpu"}
        api.pod(job, 0)
        api.pod(job, 1, "Pending", conditions=[unschedulable])
        job["status"]["conditions"] = []
        api.pod(job, 0, "Succeeded")
        until(lambda: told("1 of 2 nodes run; ") and told("Insufficient nvidia.com/gpu"))
        complete(task)(api, job)

    task.api.play = play
    task.go()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (("POST", 403, "trainjobs is forbidden"), ConfigError, "403: trainjobs is forbidden; bind the Role bloomery-"),
        (("POST", 404, "no matches for kind"), ConfigError, "install Kubeflow Trainer 2.2 or later"),
        (("GET", 404, "not found"), ServiceError, "is gone: somebody else has deleted it"),
    ],
)
def test_what_kubernetes_refuses_is_told_with_what_to_do(task, fault, kind, message):
    task.api.faults = [fault]
    with pytest.raises(kind, match=message):
        task.go()
    assert not any(asked.startswith("DELETE") for asked in task.api.asked) == (fault[0] == "POST")


def test_an_error_of_the_api_that_passes_is_only_told(task, caplog):
    task.api.play = complete(task)
    task.api.faults = [("POST", 500, "etcd"), ("GET", 503, "busy")]
    assert task.go()["metrics"] == {"add/total": 210.0}
    assert [message for message in caplog.messages if "again in" in message and "Kubernetes" in message]


def test_the_name_is_the_same_for_each_attempt_of_a_task_and_for_no_other_run(monkeypatch):
    names = []
    for run in ("a", "a", "b"):
        monkeypatch.setenv("BLOOMERY_PIPELINE_RUN", run)
        names.append(train_job._key("s3://bucket/sft/0123"))
    assert names[0] == names[1] != names[2]


def test_without_a_store_on_objects_there_is_nothing_to_share(task, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(task.folder))
    with pytest.raises(ConfigError, match="several nodes share nothing but an object store: set resources.store"):
        task.go()
    assert not task.api.asked


def test_a_checkpoint_is_what_all_machines_have_written_of_it(tmp_path, object_store, monkeypatch, caplog):
    """Two machines in turn, as one process each: what they write, and what they begin again with."""
    uri = f"{object_store.uri}/add/0123.checkpoints"
    monkeypatch.setenv("PET_NNODES", "2")

    def machine(rank: int) -> unfinished.Place:
        monkeypatch.setenv("PET_NODE_RANK", str(rank))
        return unfinished.Place(tmp_path / f"machine{rank}", uri)

    def written(place: unfinished.Place, name: str, rank: int) -> Path:
        folder = place.folder / name
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / f"{rank}.distcp").write_text(f"{name} of {rank}")
        return folder

    def kept(name: str, others: bool = True) -> None:
        if others:
            with unfinished.lying_in(machine(1)):
                unfinished.keep_part(written(machine(1), name, 1))
        with unfinished.lying_in(machine(0)):
            unfinished.keep([written(machine(0), name, 0)])

    def found(rank: int) -> dict[str, str]:
        machine(rank)
        with unfinished.kept_at(uri):
            place = unfinished.place()
            return {f"{f.relative_to(place)}": f.read_text() for f in sorted(place.rglob("*")) if f.is_file()}

    kept("checkpoint-5")
    kept("checkpoint-9")
    whole = {f"checkpoint-9/parts/{rank}.distcp": f"checkpoint-9 of {rank}" for rank in (0, 1)}
    assert found(0) == found(1) == whole
    assert trees.names(uri) == ["checkpoint-9", "checkpoint-9.node-1"]
    assert not (tmp_path / "machine1" / "checkpoint-9").exists()
    kept("checkpoint-12", others=False)  # the part of the second machine was not taken by the store
    assert "checkpoint-12 is kept on this machine alone: checkpoint-12.node-1 was not kept" in caplog.text
    assert found(1) == whole
    s3.delete(f"{uri}/checkpoint-9.node-1")
    assert found(0) == {}
