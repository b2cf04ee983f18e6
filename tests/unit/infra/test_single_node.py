"""The node of the guide, 2 cores and 8 GiB, has room for all that is requested on it: what has none waits for ever."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes.utils import parse_quantity

from bloomery.infra.resources import ResourcesConfig

ROOT = Path(__file__).resolve().parents[3]
NODE = {"cpu": "2", "memory": "8092Mi"}
"""Without the 100 MiB below which a kubelet evicts."""
SYSTEM = {"kube-apiserver": ("250m", "0"), "kube-controller-manager": ("200m", "0"), "kube-scheduler": ("100m", "0")}
SYSTEM |= {"etcd": ("100m", "100Mi"), "coredns": ("200m", "140Mi"), "kindnet": ("100m", "50Mi")}
"""What kubeadm and kind request for themselves, two replicas of coredns."""
KUBEFLOW = {"ml-pipeline": ("250m", "500Mi"), "ml-pipeline-persistenceagent": ("120m", "500Mi")}
KUBEFLOW |= {"workflow-controller": ("100m", "500Mi"), "mysql": ("100m", "800Mi"), "ml-pipeline-ui": ("10m", "70Mi")}
KUBEFLOW |= {"seaweedfs": ("32m", "128Mi"), "driver": ("100m", "128Mi")}
"""Of manifests/kustomize in kubeflow/pipelines; its other pods request nothing. The driver is a Deployment in newer
versions, in older ones a pod before each task."""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubeflow_pipelines_mlflow_a_server_and_a_task_fit_the_single_node(tmp_path):
    shutil.copytree(ROOT / "infra" / "k8s", tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "single-node" / "kustomization.yaml"
    text = file.read_text()
    file.write_text(text.replace("#components:\n#  -", "components:\n  -"))
    rendered = subprocess.run(["kubectl", "kustomize", file.parent], check=True, capture_output=True, text=True).stdout
    ours = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        for one in yaml.safe_load_all(rendered)
        if one["kind"] in ("Deployment", "StatefulSet")
    }
    assert set(ours) == {"mlflow", "mlflow-postgres", "bloomery-serve"}
    recipe = yaml.safe_load((file.parent / "recipe.yaml").read_text())
    for resources in (ResourcesConfig.model_validate(recipe["resources"]), ResourcesConfig()):
        task = {"cpu": resources.cpu_request, "memory": resources.memory}
        for index, name in enumerate(("cpu", "memory")):
            theirs = [given[index] for given in (*SYSTEM.values(), *KUBEFLOW.values())]
            wanted = [*theirs, *(given[name] for given in ours.values()), task[name]]
            assert sum(parse_quantity(one) for one in wanted) <= parse_quantity(NODE[name]), name
