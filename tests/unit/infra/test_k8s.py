"""The manifests are valid, complete, and ask for no privilege; rendered by kustomize, checked without a cluster."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from bloomery.components.core.config import parse
from bloomery.infra import images, secrets, settings
from bloomery.infra.resources import ResourcesConfig
from bloomery.pipelines import steps
from bloomery.pipelines.drift_check import RECIPES_MAP

K8S = Path(__file__).resolve().parents[3] / "infra" / "k8s"
KUBERNETES = "1.33"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
FOLDERS = ["base", *(f"{kind}/{f.name}" for kind in ("overlays", "components") for f in (K8S / kind).iterdir())]
needs_kustomize = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

FREE = {"*": {}}
REQUIREMENTS = [{"key": None, "operator": None, "values": None}]
CUSTOM = {
    "PodDefault.kubeflow.org/v1alpha1": {
        "spec": {
            "desc": None,
            "selector": {"matchLabels": FREE},
            "env": [{"name": None, "value": None}],
            "volumes": None,
            "volumeMounts": None,
        }
    },
    "ResourceFlavor.kueue.x-k8s.io/v1beta2": {"spec": {"nodeLabels": FREE, "tolerations": None}},
    "ClusterQueue.kueue.x-k8s.io/v1beta2": {
        "spec": {
            "namespaceSelector": {"matchLabels": FREE},
            "preemption": {"withinClusterQueue": None},
            "resourceGroups": [
                {
                    "coveredResources": None,
                    "flavors": [{"name": None, "resources": [{"name": None, "nominalQuota": None}]}],
                }
            ],
        }
    },
    "LocalQueue.kueue.x-k8s.io/v1beta2": {"spec": {"clusterQueue": None}},
    "WorkloadPriorityClass.kueue.x-k8s.io/v1beta2": {"value": None, "description": None},
    "NodePool.karpenter.sh/v1": {
        "spec": {
            "template": {
                "metadata": {"labels": FREE},
                "spec": {
                    "taints": [{"key": None, "value": None, "effect": None}],
                    "requirements": REQUIREMENTS,
                    "nodeClassRef": {"group": None, "kind": None, "name": None},
                    "expireAfter": None,
                },
            },
            "limits": FREE,
            "disruption": {"consolidationPolicy": None, "consolidateAfter": None},
        }
    },
    "EC2NodeClass.karpenter.k8s.aws/v1": {
        "spec": {
            "role": None,
            "amiSelectorTerms": [{"alias": None}],
            "subnetSelectorTerms": [{"tags": FREE}],
            "securityGroupSelectorTerms": [{"tags": FREE}],
            "blockDeviceMappings": [
                {"deviceName": None, "ebs": {"volumeSize": None, "volumeType": None, "encrypted": None}}
            ],
        }
    },
    "ExternalSecret.external-secrets.io/v1": {
        "spec": {
            "refreshInterval": None,
            "secretStoreRef": {"kind": None, "name": None},
            "target": {"name": None, "creationPolicy": None},
            "data": [{"secretKey": None, "remoteRef": {"key": None, "property": None}}],
        }
    },
}
"""Fields of other projects' kinds by kind and version, as far as our manifests use them: Kubernetes' own schemas hold
none of these kinds, and would pass a misspelt field."""


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
    listed = ("profile", "serving", "gpu", "studies", "private-registry")
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
    if kind not in CUSTOM:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    known = {"apiVersion": None, "kind": None, "metadata": None, **CUSTOM[kind]}
    assert not list(unknown(manifest, known)), kind


def unknown(value, known, place=""):
    if isinstance(known, list) and isinstance(value, list):
        for item in value:
            yield from unknown(item, known[0], place)
    elif isinstance(known, dict) and known is not FREE:
        assert isinstance(value, dict), place
        for key, item in value.items():
            if key in known:
                yield from unknown(item, known[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"


def pod_of(manifest: dict) -> dict:
    """The pod spec of a workload; empty for anything else."""
    spec = manifest.get("spec", {})
    return spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})


def containers(manifests: list[dict]) -> list[dict]:
    return [c for manifest in manifests for c in pod_of(manifest).get("containers", [])]


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
    assert names == {RECIPES_MAP, settings.CONFIG_MAP}
    for manifest in found:
        pod = pod_of(manifest)
        used = {volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume}
        for container in pod.get("containers", []):
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
    assert accounts == {"mlflow": pull, "bloomery-submit": pull, "bloomery-serve": pull, "mlflow-postgres": None}


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
    pods = [pod_of(manifest) for manifest in found if pod_of(manifest)]
    assert len(pods) == 5
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False and pod["serviceAccountName"] in accounts
        for container in pod["containers"]:
            limits = container["securityContext"]
            assert limits["allowPrivilegeEscalation"] is False and limits["readOnlyRootFilesystem"] is True
            assert limits["capabilities"] == {"drop": ["ALL"]}
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
    assert {name for (name,) in selected} == {*listening, "true"}
    answers = {}
    for (name,), policy in zip(selected, policies, strict=True):
        assert policy["policyTypes"] == ["Ingress"]
        for rule in policy.get("ingress", ()):
            answers.setdefault(name, []).extend((rule["ports"][0]["port"], source) for source in rule["from"])
    mlflow = {"app.kubernetes.io/name": "mlflow"}
    assert answers["mlflow-postgres"] == [
        (5432, {"podSelector": {"matchLabels": labels}}) for labels in (mlflow, runs)
    ]
    assert "true" not in answers and (5000, {"podSelector": {}}) in answers["mlflow"]


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


def test_an_unknown_field_of_a_custom_kind_is_found():
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {}, "spec": {"clusterQeue": "b"}}
    with pytest.raises(AssertionError, match="clusterQeue"):
        check(queue)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_resources_of_an_overlay_are_valid(name):
    (recipe,) = documents((K8S / "overlays" / name / "recipe.yaml").read_text())
    resources = parse(ResourcesConfig, recipe["resources"], where="resources")
    assert set(resources.steps) <= set(steps.names())
    assert (resources.accelerator is None) == (name == "single-node")
