"""The manifests are valid, complete, and ask for no privilege; checked without a cluster."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from bloomery.components.core.config import parse
from bloomery.infra import secrets
from bloomery.infra.resources import ResourcesConfig
from bloomery.pipelines import steps
from bloomery.pipelines.drift_check import RECIPES_MAP, STATE_CLAIM

K8S = Path(__file__).resolve().parents[3] / "infra" / "k8s"
KUBERNETES = "1.33"
FOLDERS = ("base", "overlays/gpu")


def documents(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[tuple[str, dict]]:
    """(place, manifest) of every file that a kustomization lists."""
    found = []
    for folder in FOLDERS:
        (kustomization,) = documents(K8S / folder / "kustomization.yaml")
        for name in kustomization["resources"]:
            file = K8S / folder / name
            if file.is_file():
                found += [(f"{folder}/{name}:{doc['kind']}", doc) for doc in documents(file)]
    return found


def pod_of(manifest: dict) -> dict:
    """The pod spec of a workload; empty for anything else."""
    spec = manifest.get("spec", {})
    return spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})


def pods() -> list[tuple[str, dict]]:
    return [(place, pod_of(manifest)) for place, manifest in manifests() if pod_of(manifest)]


@pytest.mark.parametrize(("place", "manifest"), manifests())
def test_a_manifest_fits_its_schema(place, manifest):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_lists_every_file_beside_it(folder):
    (kustomization,) = documents(K8S / folder / "kustomization.yaml")
    named = {name for name in kustomization["resources"] if name.endswith(".yaml")}
    named |= {name for generator in kustomization["configMapGenerator"] for name in generator.get("files", [])}
    assert named == {file.name for file in (K8S / folder).glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_renders_what_is_valid(folder):
    rendered = subprocess.run(["kubectl", "kustomize", K8S / folder], capture_output=True, text=True, check=True)
    found = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    for manifest in found:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert {m["metadata"].get("namespace", "bloomery") for m in found} == {"bloomery"}
    config_maps = {m["metadata"]["name"] for m in found if m["kind"] == "ConfigMap"}
    assert RECIPES_MAP in config_maps
    for manifest in found:
        assert set(config_maps_used(pod_of(manifest))) <= config_maps
    containers = [container for manifest in found for container in pod_of(manifest).get("containers", [])]
    ours = {container["image"] for container in containers if "bloomery" in container["image"]}
    assert ours == {"ghcr.io/bloomery/bloomery:0.1.0-cpu"}


def config_maps_used(pod: dict) -> list[str]:
    volumes = [volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume]
    sources = [source for container in pod.get("containers", []) for source in container.get("envFrom", [])]
    return volumes + [source["configMapRef"]["name"] for source in sources]


@pytest.mark.parametrize(("place", "pod"), pods())
def test_a_pod_asks_for_no_privilege(place, pod):
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        limits = container["securityContext"]
        assert limits["allowPrivilegeEscalation"] is False and limits["readOnlyRootFilesystem"] is True
        assert limits["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")


def test_the_state_of_the_drift_check_has_its_claim():
    claims = [m["metadata"]["name"] for _, m in manifests() if m["kind"] == "PersistentVolumeClaim"]
    assert claims == [STATE_CLAIM]


def test_the_pods_read_the_secret_that_tasks_read():
    used = {
        variable["valueFrom"]["secretKeyRef"]["name"]
        for _, pod in pods()
        for container in pod["containers"]
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert used == {secrets.SECRET, "mlflow-database"}


def test_no_manifest_holds_a_credential():
    assert not [place for place, manifest in manifests() if manifest["kind"] == "Secret"]


def test_the_resources_of_the_gpu_overlay_are_valid():
    (recipe,) = documents(K8S / "overlays" / "gpu" / "recipe.yaml")
    resources = parse(ResourcesConfig, recipe["resources"], where="resources")
    assert resources.accelerators == 1 and set(resources.steps) <= set(steps.names())
