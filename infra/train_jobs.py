"""The `TrainJob` of a task whose training several nodes share: what Kubeflow Trainer is asked for, whole but for the
name and the work, which the task adds (`core/train_job.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from bloomery.components.core.train_job import CONTAINER, KIND
from bloomery.infra import images, secrets, settings

RUNTIME = "bloomery"
"""Name of the TrainingRuntime that infra/k8s/components/multi-node makes in the namespace of the runs."""
COMMAND = ("python3", "-m", "bloomery.components.core.node_worker")
MANAGER = "bloomery.io/place"
"""Under which Trainer keeps what is changed of the runtime for one job, beside what others (Kueue) change."""
QUEUES = "kueue.x-k8s.io/"
"""Labels of Kueue are the job's: it queues jobs whole, and not their pods."""


def train_job(
    *,
    image: str,
    nodes: int,
    accelerators: Mapping[str, int],
    size: tuple[str, str, str],
    environment: Mapping[str, str],
    keys: Iterable[str],
    secret: str,
    labels: Mapping[str, str],
    node_pool: Mapping[str, str],
    tolerations: list[dict[str, Any]],
    shm_gib: int,
) -> dict[str, Any]:
    """A job of `nodes` pods, each with `accelerators` (number by resource name) and a process for each of them, at
    least one.

    `size` is the limit of cores, the cores and the memory requested; `environment` and the `keys` of `secret`, beside
    the addresses of the ConfigMap, are what a task of the pipeline has too.
    """
    cpu, request, memory = size
    cards = {name: str(number) for name, number in accelerators.items()}
    told = [{"name": name, "value": value} for name, value in environment.items()]
    told += [_from("configMapKeyRef", settings.CONFIG_MAP, key) for key in settings.KEYS if key not in environment]
    told += [_from("secretKeyRef", secret, key) for key in (*secrets.KEYS, *keys)]
    trainer = {
        "image": image,
        "command": list(COMMAND),
        "numNodes": nodes,
        "numProcPerNode": max(1, sum(accelerators.values())),
        "resourcesPerNode": {
            "requests": {"cpu": request, "memory": memory, **cards},
            "limits": {"cpu": cpu, "memory": memory, **cards},
        },
        "env": told,
    }
    pod = _pod(labels, node_pool, tolerations, shm_gib if accelerators else 0)
    job = {"name": "node", "template": {"spec": {"template": pod}}}
    patch = {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
    return {
        "apiVersion": "/".join(KIND),
        "kind": "TrainJob",
        "metadata": {"labels": {"app.kubernetes.io/part-of": "bloomery", **labels}},
        "spec": {
            "runtimeRef": {"apiGroup": KIND[0], "kind": "TrainingRuntime", "name": RUNTIME},
            "trainer": trainer,
            "runtimePatches": [patch],
        },
    }


def _from(kind: str, name: str, key: str) -> dict[str, Any]:
    """A variable of the name of a key that may be absent."""
    return {"name": key, "valueFrom": {kind: {"name": name, "key": key, "optional": True}}}


def _pod(
    labels: Mapping[str, str], node_pool: Mapping[str, str], tolerations: list[dict[str, Any]], shm_gib: int
) -> dict[str, Any]:
    """What the pods of a job have beside what the runtime gives them."""
    own = {name: value for name, value in labels.items() if not name.startswith(QUEUES)}
    pull_secret = os.environ.get(images.PULL_SECRET)
    volumes: list[dict[str, Any]] = [{"name": "ca", "configMap": {"name": settings.CA_MAP, "optional": True}}]
    mounts = [{"name": "ca", "mountPath": settings.CA_FOLDER, "readOnly": True}]
    if shm_gib:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    spec = {
        **({"nodeSelector": dict(node_pool)} if node_pool else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        **({"imagePullSecrets": [{"name": pull_secret}]} if pull_secret else {}),
        "volumes": volumes,
        "containers": [{"name": CONTAINER, "volumeMounts": mounts}],
    }
    return {**({"metadata": {"labels": own}} if own else {}), "spec": spec}
