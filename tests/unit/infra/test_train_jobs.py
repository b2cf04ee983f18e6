"""The TrainJob that a pipeline is compiled with, beside the one that was read and agreed to (train_job.yaml)."""

import json
from pathlib import Path

import pytest
import trainer_schema
import yaml
from kfp import compiler, dsl

from bloomery.components.core import train_job
from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError
from bloomery.infra import secrets, settings
from bloomery.infra.images import CPU_IMAGE, GPU_IMAGE
from bloomery.infra.resources import ResourcesConfig, place
from bloomery.infra.short_stacks import short_stacks
from bloomery.pipelines.steps import find

GOLDEN = Path(__file__).parent / "train_job.yaml"
RESOURCES = {
    "profile": "multi-node",
    "store": "s3://bucket/store",
    "cpu_pool": {"pool": "cpu"},
    "node_pool": {"nvidia.com/gpu.present": "true"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
    "labels": {"kueue.x-k8s.io/queue-name": "bloomery", "team": "search"},
    "steps": {"sft": {"memory": "1Ti"}, "cpt": {"nodes": 1}},
}


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def answer(question: int) -> int:
    return question + 1


def compiled(resources: dict, tmp_path: Path, *steps: str) -> tuple[dict, dict]:
    """(container, settings of its pod) of tasks of `steps`, by step."""

    @dsl.pipeline(name="placed")
    @short_stacks()
    def pipeline() -> None:
        for name in steps:
            step, task = find(name), answer(question=1).set_display_name(name)
            task.set_env_variable("BLOOMERY_RECIPE", "golden")
            told = parse(ResourcesConfig, resources, where="resources")
            place(task, name, told, accelerated=step.accelerator, cached=True, credentials=step.secrets)

    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    containers, pods = {}, {}
    for task in spec["root"]["dag"]["tasks"].values():
        executor = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        name = task["taskInfo"]["name"]
        containers[name] = spec["deploymentSpec"]["executors"][executor]["container"]
        pods[name] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
    return containers, pods


def job_of(container: dict) -> dict:
    return json.loads({one["name"]: one["value"] for one in container["env"]}[train_job.GIVEN])


def test_it_is_the_one_that_was_agreed_to_and_of_trainers_own_schema(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_PULL_SECRET", "bloomery-registry")
    containers, _ = compiled(RESOURCES, tmp_path, "sft")
    pod = {"BLOOMERY_PIPELINE_RUN": "7b1c", "MLFLOW_RUN_ID": "", "AWS_SECRET_ACCESS_KEY": "hidden"}
    uri = "s3://bucket/store/sft/0123456789ab"
    job = train_job.completed(job_of(containers["sft"]), "sft-0123456789abcdef", [uri, "chats", "base_model"], pod)
    # To agree to another: write this text to the file, and read what has changed.
    assert yaml.safe_dump(job, sort_keys=False) == GOLDEN.read_text().partition("\n")[2]
    assert trainer_schema.problems(job) == []
    assert "hidden" not in json.dumps(job)


def test_the_task_itself_waits_on_the_cpu_pool(tmp_path):
    containers, pods = compiled(RESOURCES, tmp_path, "sft", "cpt", "evaluation")
    waiting = containers["sft"]
    assert waiting["image"] == CPU_IMAGE and "accelerator" not in waiting["resources"]
    assert (waiting["resources"]["resourceCpuLimit"], waiting["resources"]["resourceMemoryLimit"]) == ("2", "16Gi")
    assert pods["sft"]["nodeSelector"] == {"labels": {"pool": "cpu"}} and "tolerations" not in pods["sft"]
    environment = {one["name"]: one["value"] for one in waiting["env"]}
    assert environment["BLOOMERY_SHARDING"] == "full" and "BLOOMERY_ACCELERATORS" not in environment
    for name, cards in (("cpt", "8"), ("evaluation", "1")):  # on one node, as without `nodes`
        assert containers[name]["resources"]["accelerator"]["resourceCount"] == cards
        assert train_job.GIVEN not in {one["name"] for one in containers[name]["env"]}
        assert containers[name]["image"] == GPU_IMAGE


def test_nodes_without_accelerators_train_on_their_cores(tmp_path):
    resources = {"nodes": 3, "cpu": "4", "cpu_pool": {"pool": "cpu"}, "store": "s3://bucket/store", "sharding": "full"}
    containers, _ = compiled(resources, tmp_path, "dpo")
    job = job_of(containers["dpo"])
    assert trainer_schema.problems(job) == []
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (3, 1, CPU_IMAGE)
    same = {"cpu": "4", "memory": "3Gi"}
    assert trainer["resourcesPerNode"] == {"requests": same, "limits": same}
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "cpu"} and [volume["name"] for volume in pod["volumes"]] == ["ca"]


def test_its_pods_get_what_a_task_gets_and_secrets_by_reference(tmp_path):
    containers, _ = compiled(RESOURCES, tmp_path, "sft")
    told = {one["name"]: one for one in job_of(containers["sft"])["spec"]["trainer"]["env"]}
    own = {one["name"] for one in containers["sft"]["env"]} - {train_job.GIVEN}
    assert set(told) == own | set(secrets.KEYS) | set(settings.KEYS)
    assert told["OMP_NUM_THREADS"]["value"] == "64" and told["BLOOMERY_TASK_IMAGE"]["value"] == GPU_IMAGE
    for key in secrets.KEYS:
        assert told[key]["valueFrom"]["secretKeyRef"] == {"name": secrets.SECRET, "key": key, "optional": True}


def test_without_a_store_on_objects_nothing_is_compiled(tmp_path, monkeypatch):
    resources = {key: value for key, value in RESOURCES.items() if key != "store"}
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"resources\.nodes: .* sft share nothing but an object store; set"):
        compiled(resources, tmp_path, "sft")
    monkeypatch.setenv("BLOOMERY_STORE", "s3://mine")
    compiled(resources, tmp_path, "sft")
