"""The manifests are valid, complete, and ask for no privilege; rendered by kustomize, checked without a cluster."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import custom_kinds
import kubernetes_validate
import pytest
import trainer_schema
import yaml
from kubernetes.utils import parse_quantity

from bloomery.components.core import train_job
from bloomery.components.core.config import parse
from bloomery.components.core.errors import BloomeryError, ServiceError
from bloomery.infra import images, secrets, settings, train_jobs
from bloomery.infra.resources import ResourcesConfig
from bloomery.pipelines import steps
from bloomery.pipelines.drift_check import TOKEN_LABEL

K8S = Path(__file__).resolve().parents[3] / "infra" / "k8s"
KUBERNETES = ("1.29", "1.36")
"""The oldest version that infra/README.md names, and the one that a run on a real cluster had."""
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
FOLDERS = ["base", *(f"{kind}/{f.name}" for kind in ("overlays", "components") for f in (K8S / kind).iterdir())]
needs_kustomize = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def documents(text: str) -> list[dict]:
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(folder: Path) -> list[dict]:
    found = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return documents(found.stdout)


@functools.cache
def overlay(name: str) -> list[dict]:
    return rendered(K8S / "overlays" / name)


def everything(folder: Path) -> list[dict]:
    """An overlay of one's own in `folder`, with every component, in a profile, from another registry by digest."""
    folder.mkdir()
    digest = "sha256:" + "ab" * 32
    listed = ("profile", "serving", "gpu", "multi-node", "ray", "studies", "private-registry")
    kustomization = {
        "namespace": "team-a",
        "resources": [os.path.relpath(K8S / "base", folder)],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in listed],
        "images": [
            {"name": "ghcr.io/bloomery/bloomery-cpu", "newName": "r.example.com/cpu", "digest": digest},
            {"name": "ghcr.io/bloomery/bloomery-gpu", "newName": "r.example.com/gpu", "digest": digest},
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return rendered(folder)


def check(manifest: dict) -> None:
    """Hold a manifest against its schema; raises for an unknown field."""
    kind = f"{manifest['kind']}.{manifest['apiVersion']}"
    if manifest["kind"] in trainer_schema.KINDS:
        assert not trainer_schema.problems(manifest)
        return
    if manifest["kind"] == "RayCluster":
        for pod in pods_of(manifest):
            template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "r"}, "template": {"spec": pod}}
            held(template)
    if kind not in custom_kinds.FIELDS:
        held(manifest)
        return
    assert not list(custom_kinds.unknown(manifest)), kind


def held(manifest: dict) -> None:
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def pods_of(manifest: dict) -> list[dict]:
    """The pod specs of a workload; none for anything else."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayCluster":
        return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    if manifest["kind"] == "TrainingRuntime":
        return [job["template"]["spec"]["template"]["spec"] for job in spec["template"]["spec"]["replicatedJobs"]]
    found = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec")
    return [found] if found else []


def containers(manifests: list[dict]) -> list[dict]:
    return [container for manifest in manifests for pod in pods_of(manifest) for container in pod["containers"]]


def settings_of(manifests: list[dict]) -> dict[str, str]:
    (found,) = [m["data"] for m in manifests if m["metadata"]["name"] == settings.CONFIG_MAP]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_lists_every_file_beside_it(folder):
    (kustomization,) = documents((K8S / folder / "kustomization.yaml").read_text())
    named = {name for name in kustomization.get("resources", []) if "." in name.removeprefix("../..")}
    named |= set(kustomization.get("configurations", []))
    for generator in kustomization.get("configMapGenerator", []):
        named |= {*generator.get("files", []), *generator.get("envs", [])}
    assert named == {file.name for file in (K8S / folder).iterdir()} - {"kustomization.yaml"}


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_renders_what_is_valid_in_a_namespace_that_is_there(name):
    found = overlay(name)
    for manifest in found:
        check(manifest)
        assert manifest["kind"] not in ("Namespace", "Secret")
        assert manifest["metadata"]["namespace"] == "kubeflow"
    names = {m["metadata"]["name"] for m in found if m["kind"] == "ConfigMap"}
    assert names == {"bloomery-recipes", settings.CONFIG_MAP}
    for manifest in found:
        for pod in pods_of(manifest):
            maps = [volume["configMap"] for volume in pod.get("volumes", []) if "configMap" in volume]
            used = {one["name"] for one in maps if not one.get("optional")}
            for container in pod["containers"]:
                used |= {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
            assert used <= names
        if manifest["kind"] == "RoleBinding":
            assert {subject["namespace"] for subject in manifest["subjects"]} == {"kubeflow"}


@needs_kustomize
def test_one_entry_of_images_changes_the_containers_and_the_pods_of_runs_and_a_namespace_everything(tmp_path):
    found = everything(tmp_path / "mine")
    for manifest in found:
        check(manifest)
        assert manifest["metadata"]["namespace"] == "team-a"
    for container in containers(found):
        names = [variable["name"] for variable in container.get("env", [])]
        assert len(names) == len(set(names)), "a name that stands twice is refused by `apply --server-side`"
    ours = {container["image"] for container in containers(found)} - {"postgres:17.2"}
    told = settings_of(found)
    assert ours == {told[images.CPU]} == {"r.example.com/cpu@sha256:" + "ab" * 32}
    assert told[images.GPU] == "r.example.com/gpu@sha256:" + "ab" * 32
    accounts = {m["metadata"]["name"]: m.get("imagePullSecrets") for m in found if m["kind"] == "ServiceAccount"}
    pull = [{"name": told[images.PULL_SECRET]}]
    pulling = dict.fromkeys(("mlflow", "mlflow-postgres", "bloomery-submit", "bloomery-serve", "bloomery-ray"), pull)
    assert accounts == {**pulling, "bloomery-train": None}  # nodes are told by their TrainJob


def test_the_images_of_the_base_are_those_that_pipelines_are_compiled_with():
    told = dict(line.split("=", 1) for line in (K8S / "base" / "settings.env").read_text().splitlines() if "=" in line)
    code = "from bloomery.infra import images; print(images.CPU_IMAGE, images.GPU_IMAGE)"
    bare = {key: value for key, value in os.environ.items() if key not in (images.CPU, images.GPU)}
    compiled = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert [told[images.CPU], told[images.GPU]] == compiled.stdout.split()


@needs_kustomize
def test_an_address_stands_in_one_place(tmp_path):
    found = everything(tmp_path / "mine")
    told = settings_of(found)
    rest = yaml.safe_dump([m for m in found if m["metadata"]["name"] != settings.CONFIG_MAP])
    for key in ("KF_PIPELINES_ENDPOINT", "AWS_ENDPOINT_URL", "BLOOMERY_BUCKET", "MLFLOW_TRACKING_URI"):
        assert told[key] not in rest
    assert told["AWS_ENDPOINT_URL"] == "http://seaweedfs.kubeflow:9000"
    known = {*told, "AWS_CA_BUNDLE", *(key for name in OVERLAYS for key in settings_of(overlay(name)))}
    assert {*settings.KEYS, *settings.API} <= known


@needs_kustomize
def test_a_pod_asks_for_no_privilege(tmp_path):
    found = everything(tmp_path / "mine")
    accounts = {m["metadata"]["name"] for m in found if m["kind"] == "ServiceAccount"}
    pods = [(manifest["kind"], pod) for manifest in found for pod in pods_of(manifest)]
    assert len(pods) == 8
    for kind, pod in pods:
        is_shared = kind in ("RayCluster", "TrainingRuntime")  # they write anywhere; a training is told its resources
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["serviceAccountName"] in accounts
        is_head = pod["containers"][0]["name"] == "ray-head"  # whose autoscaler asks for workers
        assert pod.get("automountServiceAccountToken", True) is is_head
        for container in pod["containers"]:
            limits = container["securityContext"]
            assert limits["allowPrivilegeEscalation"] is False
            assert is_shared or limits["readOnlyRootFilesystem"] is True
            assert limits["capabilities"] == {"drop": ["ALL"]}
            if kind != "TrainingRuntime":
                assert {"cpu", "memory"} <= set(container["resources"]["requests"])
                assert "memory" in container["resources"]["limits"]
            assert not container["image"].endswith(":latest")
            for kind in ("livenessProbe", "readinessProbe"):
                assert container.get(kind, {"timeoutSeconds": 10})["timeoutSeconds"] >= 10
            alive = container.get("livenessProbe", {"periodSeconds": 30, "failureThreshold": 10})
            assert alive["periodSeconds"] * alive["failureThreshold"] >= 300


@needs_kustomize
def test_the_pods_read_the_secret_that_tasks_read(tmp_path):
    sources = [
        variable["valueFrom"]["secretKeyRef"]
        for container in containers(everything(tmp_path / "mine"))
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    assert {source["name"] for source in sources} == {secrets.SECRET, "mlflow-database"}
    assert {source["key"] for source in sources if source["name"] == secrets.SECRET} <= set(secrets.KEYS)


@needs_kustomize
def test_whoever_reads_the_store_knows_all_of_it(tmp_path):
    """Address, region, checksums and the authority of its certificate, which is mounted where the setting points."""
    needs = {key for key in settings.KEYS if key.startswith("AWS_")}
    readers = []
    for manifest in everything(tmp_path / "mine"):
        for pod in pods_of(manifest):
            (container, *_) = pod["containers"]
            given = {variable["name"] for variable in container.get("env", [])}
            if "AWS_ACCESS_KEY_ID" not in given:
                continue
            readers.append(container["name"])
            assert "envFrom" in container or needs <= given
            (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == settings.CA_FOLDER]
            (volume,) = [one["configMap"] for one in pod["volumes"] if one["name"] == mount["name"]]
            assert volume == {"name": settings.CA_MAP, "optional": True}
    assert sorted(readers) == ["mlflow", "schedule", "serve", "submit"]


@needs_kustomize
def test_who_answers_whom(tmp_path):
    """Every pod of ours that listens, and those of runs, which do not, have a policy; each names whom it answers."""
    found = everything(tmp_path / "mine")
    policies = [manifest["spec"] for manifest in found if manifest["kind"] == "NetworkPolicy"]
    selected = [tuple(policy["podSelector"]["matchLabels"].values()) for policy in policies]
    runs = {"pipelines.kubeflow.org/v2_component": "true"}
    listening = {
        manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for manifest in found
        if manifest["kind"] in ("Deployment", "StatefulSet")
    }
    # Nodes of a training and of Ray are made by their operators.
    assert {name for (name,) in selected} == {*listening, "true", "bloomery-train", "bloomery-ray"}
    answers = {}
    for (name,), policy in zip(selected, policies, strict=True):
        assert policy["policyTypes"] == ["Ingress"]
        for rule in policy.get("ingress", ()):
            port = rule["ports"][0]["port"] if "ports" in rule else None  # any
            answers.setdefault(name, []).extend((port, source) for source in rule["from"])
    mlflow = {"app.kubernetes.io/name": "mlflow"}
    assert answers["mlflow-postgres"] == [
        (5432, {"podSelector": {"matchLabels": labels}}) for labels in (mlflow, runs)
    ]
    assert "true" not in answers and (5000, {"podSelector": {}}) in answers["mlflow"]


@needs_kustomize
def test_what_submits_has_room_and_time_to_make_the_data_of_the_demo():
    """1.5 GiB, and two minutes on two cores, which a pod that asks for a tenth of one may have to wait for."""
    jobs = [manifest for manifest in overlay("single-node") if manifest["kind"] == "CronJob"]
    found = {manifest["metadata"]["name"]: manifest["spec"]["jobTemplate"]["spec"] for manifest in jobs}
    assert set(found) == {"bloomery-submit", "bloomery-schedule"}
    for job in found.values():
        (container,) = job["template"]["spec"]["containers"]
        assert parse_quantity(container["resources"]["limits"]["memory"]) >= 2 * 1.5 * 2**30
        assert job["activeDeadlineSeconds"] >= 20 * 120
        assert {"name": "HOME", "value": "/tmp"} in container["env"]  # where they are made; the root is read-only


@needs_kustomize
def test_a_rollout_has_failed_no_sooner_than_a_pod_that_starts(tmp_path):
    """`kubectl rollout status` gives up at the deadline of the Deployment, ten minutes unless it says more."""
    for manifest in everything(tmp_path / "mine"):
        if manifest["kind"] == "Deployment":
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            start = container["startupProbe"]
            starting = start["periodSeconds"] * start["failureThreshold"]
            assert manifest["spec"]["progressDeadlineSeconds"] >= 600 + starting


@needs_kustomize
def test_mlflow_runs_no_jobs_of_its_own():
    (server,) = [c for c in containers(overlay("single-node")) if c["name"] == "mlflow"]
    assert {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"} in server["env"]
    assert "--artifacts-destination=$(BLOOMERY_BUCKET)/mlflow" in server["args"]


@pytest.mark.parametrize("file", sorted((K8S / "samples").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_sample_is_valid(file):
    found = documents(file.read_text())
    for manifest in found:
        check(manifest)
        assert manifest["kind"] != "Secret"
    keys = {entry["secretKey"] for m in found if m["kind"] == "ExternalSecret" for entry in m["spec"]["data"]}
    assert keys <= {*secrets.KEYS, "HF_TOKEN", "username", "password"}


def component(name: str, kind: str) -> dict:
    """The object of that kind in a component."""
    files = sorted((K8S / "components" / name).glob("*.yaml"))
    (found,) = [m for file in files for m in documents(file.read_text()) if m["kind"] == kind]
    return found


def test_the_token_is_for_our_pods_alone_and_nothing_of_kubeflows_own_name_is_overwritten():
    """`access-ml-pipeline` is what Kubeflow's documentation calls a profile's own."""
    given = component("profile", "PodDefault")
    assert given["metadata"]["name"] != "access-ml-pipeline"
    assert given["spec"]["selector"]["matchLabels"] == {TOKEN_LABEL: "true"} != {"access-ml-pipeline": "true"}


def test_an_unknown_field_of_a_custom_kind_is_found():
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {}, "spec": {"clusterQeue": "b"}}
    with pytest.raises(AssertionError, match="clusterQeue"):
        check(queue)
    runtime = component("multi-node", "TrainingRuntime")
    runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(AssertionError, match=r"failurePolicy\.maxRestart: no such field"):
        check(runtime)
    runtime["spec"]["template"]["spec"]["failurePolicy"] = {"maxRestarts": "3"}
    with pytest.raises(ValueError, match="maxRestarts"):
        check(runtime)
    cluster = component("ray", "RayCluster")
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["container"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="container"):
        check(cluster)


def test_a_job_begins_from_the_runtime_and_fails_at_once_where_a_user_has_to_act():
    runtime = component("multi-node", "TrainingRuntime")
    assert runtime["metadata"]["name"] == train_jobs.RUNTIME
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    ours = {kind.exit_code for kind in BloomeryError.__subclasses__()}
    assert set(rule["onExitCodes"]["values"]) == ours - {ServiceError.exit_code}
    (pod,) = pods_of(runtime)
    assert pod["containers"][0]["name"] == rule["onExitCodes"]["containerName"] == train_job.CONTAINER
    (verdict,) = runtime["spec"]["template"]["spec"]["failurePolicy"]["rules"]
    assert (verdict["action"], verdict["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_a_task_that_asks_for_nodes_may_do_what_it_does_and_no_more():
    """The calls that it makes are counted in tests/integration/test_nodes.py."""
    rules = component("multi-node", "Role")["rules"]
    found = {(*rule["apiGroups"], *rule["resources"]): set(rule["verbs"]) for rule in rules}
    assert found == {
        ("trainer.kubeflow.org", "trainjobs"): {"create", "get", "delete"},
        ("", "pods"): {"get", "list"},
        ("", "pods/log"): {"get"},
    }


def test_tasks_find_the_ray_cluster_of_the_version_that_is_locked():
    cluster = component("ray", "RayCluster")
    (kustomization,) = documents((K8S / "components" / "ray" / "kustomization.yaml").read_text())
    (told,) = kustomization["configMapGenerator"][0]["literals"]
    assert told == f"RAY_ADDRESS=ray://{cluster['metadata']['name']}-head-svc:10001"
    locked = (K8S.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['spec']['rayVersion']}" in locked


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_resources_of_an_overlay_are_valid(name):
    (recipe,) = documents((K8S / "overlays" / name / "recipe.yaml").read_text())
    resources = parse(ResourcesConfig, recipe["resources"], where="resources")
    assert set(resources.steps) <= set(steps.names())
    assert (resources.accelerator is None) == (name == "single-node")
