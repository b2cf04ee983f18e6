import re
from typing import Any

import pytest
from kfp import compiler, dsl, local

from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError
from bloomery.infra import secrets, settings, surroundings, words
from bloomery.infra.images import CPU_IMAGE, GPU_IMAGE
from bloomery.infra.resources import ResourcesConfig, place
from bloomery.infra.short_stacks import short_stacks
from bloomery.pipelines.steps import find

GPU_POOL = {
    "accelerator": "nvidia.com/gpu",
    "accelerators": 4,
    "cpu_pool": {"pool": "cpu"},
    "node_pool": {"pool": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
    "steps": {
        "dedup": {"memory": "64Gi", "cpu": "16"},
        "evaluation": {"accelerators": 1},
        "ptq": {"accelerators": 0},
    },
}


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def answer(question: int) -> int:
    return question + 1


def compiled(resources: ResourcesConfig, tmp_path: Any, *steps: str) -> tuple[dict, dict, dict]:
    """(container by step, Kubernetes settings by step, task by step) of a pipeline of `steps`."""
    import yaml

    @dsl.pipeline(name="placed")
    @short_stacks()
    def pipeline() -> None:
        for step in steps:
            known = find(step)
            task = answer(question=1).set_display_name(step)
            given = {"accelerated": known.accelerator, "cached": known.is_cached, "credentials": known.secrets}
            place(task, step, resources, **given)

    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    containers, pods, tasks = {}, {}, {}
    for task in spec["root"]["dag"]["tasks"].values():
        name = task["taskInfo"]["name"]
        executor = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        containers[name] = spec["deploymentSpec"]["executors"][executor]["container"]
        pods[name] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
        tasks[name] = task
    return containers, pods, tasks


def test_a_training_step_takes_the_accelerator_pool(tmp_path):
    resources = ResourcesConfig.model_validate(GPU_POOL)
    containers, pods, _ = compiled(resources, tmp_path, "sft", "dedup", "rejection_sampling")
    accelerator = containers["sft"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "4")
    assert {"name": "BLOOMERY_ACCELERATORS", "value": "4"} in containers["sft"]["env"]
    alone = containers["rejection_sampling"]  # three of four would idle
    assert alone["resources"]["accelerator"]["resourceCount"] == "1"
    assert "BLOOMERY_ACCELERATORS" not in {pair["name"] for pair in alone["env"]}
    assert containers["sft"]["image"] == GPU_IMAGE
    assert pods["sft"]["nodeSelector"] == {"labels": {"pool": "h200"}}
    assert pods["sft"]["tolerations"] == [{"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}]
    (shm,) = pods["sft"]["emptyDirMounts"]
    assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "8Gi")


def test_only_what_shares_a_training_is_told_to_share_out_its_weights(tmp_path):
    resources = ResourcesConfig.model_validate({**GPU_POOL, "sharding": "full"})
    containers, _, _ = compiled(resources, tmp_path, "sft", "rejection_sampling")
    assert {"name": "BLOOMERY_SHARDING", "value": "full"} in containers["sft"]["env"]
    assert "BLOOMERY_SHARDING" not in {pair["name"] for pair in containers["rejection_sampling"]["env"]}
    plain, _, _ = compiled(ResourcesConfig.model_validate(GPU_POOL), tmp_path, "sft")
    assert "BLOOMERY_SHARDING" not in {pair["name"] for pair in plain["sft"]["env"]}


def test_a_cpu_step_stays_on_the_cpu_pool(tmp_path):
    containers, pods, _ = compiled(ResourcesConfig.model_validate(GPU_POOL), tmp_path, "dedup", "ptq")
    for step in ("dedup", "ptq"):  # ptq by its zero accelerators
        assert "accelerator" not in containers[step]["resources"]
        assert containers[step]["image"] == CPU_IMAGE
        assert pods[step]["nodeSelector"] == {"labels": {"pool": "cpu"}}
        assert "tolerations" not in pods[step] and "emptyDirMounts" not in pods[step]
    assert containers["dedup"]["resources"]["resourceMemoryLimit"] == "64Gi"
    assert containers["dedup"]["resources"]["resourceCpuRequest"] == "16"
    assert containers["ptq"]["resources"]["resourceMemoryLimit"] == "3Gi"


@pytest.mark.parametrize(("cpu", "threads"), [("16", "16"), ("1500m", "2"), ("0.5", "1")])
def test_as_many_threads_as_the_task_has_cores_and_not_the_node(tmp_path, cpu, threads):
    containers, _, _ = compiled(ResourcesConfig(cpu=cpu), tmp_path, "sft")
    environment = {pair["name"]: pair["value"] for pair in containers["sft"]["env"]}
    assert surroundings.of(int(threads)).items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == threads
    assert containers["sft"]["resources"]["resourceCpuRequest"] == cpu


def test_without_an_accelerator_nothing_asks_for_one(tmp_path):
    containers, pods, _ = compiled(ResourcesConfig(), tmp_path, "cpt", "evaluation")
    assert all(container["image"] == CPU_IMAGE for container in containers.values())
    assert all("accelerator" not in container["resources"] for container in containers.values())
    assert all("nodeSelector" not in pod for pod in pods.values())


def test_side_effects_are_not_cached(tmp_path):
    _, pods, tasks = compiled(ResourcesConfig(), tmp_path, "preflight", "promotion", "dedup")
    cached = {step: bool(task["cachingOptions"].get("enableCache")) for step, task in tasks.items()}
    assert cached == {"preflight": False, "promotion": False, "dedup": True}
    (told,) = pods["dedup"]["configMapAsEnv"]
    assert told["configMapName"] == "bloomery-settings" and told["optional"] is True
    assert {pair["envVar"] for pair in told["keyToEnv"]} == set(settings.KEYS)
    (authority,) = pods["dedup"]["configMapAsVolume"]
    assert (authority["configMapName"], authority["mountPath"]) == (settings.CA_MAP, settings.CA_FOLDER)
    assert authority["optional"] is True


def test_a_training_of_ten_hours_survives_a_node_that_goes_every_half_hour(tmp_path):
    """By the rule of Argo's processNodeRetries: the wait is duration * factor ** (attempts - 1), without a bound, and
    is not begun if it would end after maxDuration, counted from the start of the first attempt."""
    _, _, tasks = compiled(ResourcesConfig(), tmp_path, "sft")
    policy = tasks["sft"]["retryPolicy"]
    wait, most = (int(policy[key].removesuffix("s")) for key in ("backoffDuration", "backoffMaxDuration"))
    now, trained, attempts = 0, 0, 0
    while trained < 10 * 3600:
        attempts += 1
        assert attempts <= 1 + policy["maxRetryCount"], f"no attempt left after {trained / 3600:.1f} h of training"
        now, trained = now + 1800, trained + 1200  # a third of each half hour is the node's and the model's start
        now += wait * policy["backoffFactor"] ** (attempts - 1)
        assert now <= most, f"no time left after {trained / 3600:.1f} h of training"
    _, _, tasks = compiled(ResourcesConfig(retries=0), tmp_path, "sft")
    assert "retryPolicy" not in tasks["sft"]


def test_a_task_fits_a_node_of_two_cores(tmp_path):
    containers, _, _ = compiled(ResourcesConfig(), tmp_path, "dedup")
    assert containers["dedup"]["resources"]["resourceCpuRequest"] == "100m"
    assert containers["dedup"]["resources"]["resourceCpuLimit"] == "2"
    assert containers["dedup"]["resources"]["resourceMemoryRequest"] == "3Gi"


def test_a_profile_fills_in_what_the_recipe_leaves_out(tmp_path):
    resources = ResourcesConfig.model_validate({"profile": "gpu-8", "memory": "20Gi"})
    containers, pods, _ = compiled(resources, tmp_path, "sft", "evaluation", "dedup")
    found = {step: container["resources"] for step, container in containers.items()}
    assert found["sft"]["accelerator"]["resourceCount"] == "8"
    assert (found["sft"]["resourceCpuRequest"], found["sft"]["resourceMemoryLimit"]) == ("64", "512Gi")
    assert (found["evaluation"]["resourceCpuRequest"], found["evaluation"]["resourceMemoryLimit"]) == ("8", "64Gi")
    assert (found["dedup"]["resourceCpuRequest"], found["dedup"]["resourceMemoryLimit"]) == ("1", "20Gi")
    assert pods["sft"]["emptyDirMounts"][0]["sizeLimit"] == "64Gi"


def test_a_step_gets_the_credentials_that_it_uses_and_no_others(tmp_path):
    _, pods, _ = compiled(ResourcesConfig(), tmp_path, "preflight", "evaluation", "sft")
    given = {}
    for step, pod in pods.items():
        (secret,) = pod["secretAsEnv"]
        assert secret["secretName"] == "bloomery-credentials" and secret["optional"] is True
        given[step] = {pair["envVar"] for pair in secret["keyToEnv"]} - set(secrets.KEYS)
    assert given == {"preflight": {"HF_TOKEN"}, "evaluation": {"HF_TOKEN"}, "sft": set()}


def test_a_pod_is_what_restricted_asks_for_and_knows_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_PULL_SECRET", "bloomery-registry")
    resources = ResourcesConfig(labels={"kueue.x-k8s.io/queue-name": "bloomery"})
    containers, pods, _ = compiled(resources, tmp_path, "sft")
    assert pods["sft"]["securityContext"] == {"runAsNonRoot": True}
    assert pods["sft"]["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "bloomery"}
    assert [entry["secretName"] for entry in pods["sft"]["imagePullSecret"]] == ["bloomery-registry"]
    (field,) = pods["sft"]["fieldPathAsEnv"]
    assert field == {"name": "BLOOMERY_PIPELINE_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    assert {"name": "BLOOMERY_TASK_IMAGE", "value": CPU_IMAGE} in containers["sft"]["env"]


def test_a_store_on_objects_is_told_to_pods_and_a_folder_is_not(tmp_path, monkeypatch):
    def told(**settings):
        containers, _, _ = compiled(ResourcesConfig(**settings), tmp_path, "dedup")
        return {pair["name"]: pair["value"] for pair in containers["dedup"]["env"]}.get("BLOOMERY_STORE")

    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path))
    assert told() is None and told(store="s3://runs/store") == "s3://runs/store"
    monkeypatch.setenv("BLOOMERY_STORE", "s3://mine")
    assert told() == "s3://mine" and told(store="s3://runs/store") == "s3://runs/store"
    with pytest.raises(ConfigError, match="resources.store"):
        parse(ResourcesConfig, {"store": "gs://runs"}, where="resources")


def test_a_placed_task_runs_under_kfp_local(tmp_path):
    @dsl.pipeline(name="placed")
    @short_stacks()
    def pipeline() -> int:
        task = answer(question=41)
        return place(task, "sft", ResourcesConfig.model_validate(GPU_POOL), accelerated=True, cached=True).output

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    assert pipeline().output == 42


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory": "8 GB"}, 'memory: found "8 GB"'),
        ({"node_pool": {"pool": "h200"}}, "name it, e.g. nvidia.com/gpu"),
        ({"acelerator": "nvidia.com/gpu"}, "did you mean 'accelerator'?"),
        ({"accelerator": "nvidia.com/gpu", "sharding": "full"}, "no training has several accelerators"),
        ({"accelerators": 2, "sharding": "full"}, "no training has several accelerators"),
        ({"nodes": 0}, "nodes: found 0"),
        ({"retries": 10**10}, "retries: found 10000000000"),
        ({"cpu": "2Gi"}, 'cpu: found "2Gi"; expected cores above 0'),
        ({"cpu": 0}, "cpu: found 0; expected cores above 0"),
        ({"cpu": "٣"}, "cpu: found"),
        ({"cpu": 1, "cpu_request": "1500m"}, 'cpu_request: found "1500m"; expected at most cpu, which is 1'),
        ({"memory": 4}, "memory: found 4; expected 1Mi or more, such as 4Gi"),
        ({"memory": "4m"}, 'memory: found "4m"; expected 1Mi or more'),
        ({"memory": "8000K"}, 'memory: found "8000K"'),  # Kubernetes writes it k
        ({"memory": "4Gi\n"}, "memory: found"),
        ({"accelerator": "H100"}, 'accelerator: found "H100"; expected the resource of a device plugin'),
        ({"labels": {"queue name": "a"}}, 'labels.queue name.[key]: found "queue name"; expected up to 63 letters'),
        ({"labels": {"a/b/c": "a"}}, 'found "a/b/c"; expected up to 63 letters'),
        ({"labels": {"team": "x" * 64}}, "labels.team: found"),
        ({"cpu_pool": {"pool": "for us"}}, 'cpu_pool.pool: found "for us"; expected up to 63 letters'),
        (
            {"accelerator": "nvidia.com/gpu", "tolerations": [{"key": "team", "value": "ours"}]},
            "Exists accepts any value, and ours is given; set operator: Equal",
        ),
        ({"image": "Ours:latest"}, 'image: found "Ours:latest"; expected the name of an image'),
        ({"secret": "our_keys"}, 'secret: found "our_keys"; expected the name of an object'),
    ],
)
def test_a_wrong_section_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(ResourcesConfig, values, where="resources")


def test_sizes_reach_a_pod_as_whole_numbers_that_kubeflow_pipelines_takes(tmp_path):
    """kfp takes no fraction and no k, and Kubernetes no K."""
    own = {"memory": "1.5Gi", "cpu_per_accelerator": 0.1, "memory_per_accelerator": 6 * 10**9}
    steps = {"dedup": {"memory": "1500k"}, "ptq": {"accelerators": 0}}
    resources = parse(ResourcesConfig, {**GPU_POOL, **own, "steps": steps})
    containers, _, _ = compiled(resources, tmp_path, "sft", "dedup", "ptq")
    found = {step: container["resources"]["resourceMemoryLimit"] for step, container in containers.items()}
    assert found == {"sft": "24000000000", "dedup": "1500000", "ptq": "1610612736"}
    assert containers["sft"]["resources"]["resourceCpuLimit"] == "0.4"
    assert resources.room("dedup", 0) == (2, 1_500_000)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("ghcr.io/bloomery/bloomery-cpu:0.1.0", True),
        (f"Registry.example.com:5000/a/b_c@sha256:{'a' * 64}", True),
        (f"bloomery:1.0@sha256:{'a' * 64}", True),
        ("", False),
        ("Bloomery:latest", False),
        ("registry.example.com/bloomery:", False),
        ("registry.example.com/bloomery@sha256:abc", False),
    ],
)
def test_names_of_images(name, is_one):
    assert words.is_image(name) is is_one


def test_a_quantity_may_be_a_number():
    found = parse(ResourcesConfig, {"cpu": 8, "memory": 8589934592, "steps": {"sft": {"cpu": 0.5, "memory": "2Gi"}}})
    assert (found.cpu, found.memory) == ("8", "8589934592")
    assert (found.steps["sft"].cpu, found.steps["sft"].memory) == ("0.5", "2Gi")
    for wrong in (-1, True, "8 cores"):
        with pytest.raises(ConfigError, match=r"resources\.cpu: found"):
            parse(ResourcesConfig, {"cpu": wrong}, where="resources")
