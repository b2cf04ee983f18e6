"""The Argo workflow behind a run on a cluster: the pods of its tasks, and what these left behind."""

from __future__ import annotations

import json
import logging
from typing import Any

from bloomery.pipelines import kubeflow

logger = logging.getLogger(__name__)


def stages(spec: dict[str, Any]) -> dict[str, str]:
    """The stage of each task of a compiled pipeline, in an order in which they can run."""
    spec = spec.get("pipeline_spec", spec)
    waiting = dict(spec.get("root", {}).get("dag", {}).get("tasks", {}))
    found: dict[str, str] = {}
    while waiting:
        free = [key for key, task in waiting.items() if set(task.get("dependentTasks", ())) <= set(found)]
        for key in free or list(waiting):
            task = waiting.pop(key)
            found[key] = task.get("taskInfo", {}).get("name", key)
    return found


def begun(workflow: dict[str, Any]) -> dict[str, str]:
    """The same of what Argo has begun, where the API tells no pipeline, as of runs that recur."""
    root = f"{workflow.get('metadata', {}).get('name', '')}.root."
    given = workflow.get("status", {}).get("nodes", {}).values()
    ordered = sorted((node for node in given if node["name"].startswith(root)), key=lambda node: str(node["startedAt"]))
    keys = [node["name"].removeprefix(root) for node in ordered]
    return {key: key.replace("-", "_") for key in keys if "." not in key and not key.endswith("-driver")}


def of(client: Any, run_id: str) -> dict[str, Any]:
    """The Argo workflow of a run, which names its pods and what ended them: the newer API leaves both out (kfp 2.17);
    empty where it cannot be had."""
    from kfp_server_api.exceptions import ApiException

    try:
        found = json.loads(kubeflow.get(client, f"/apis/v1beta1/runs/{run_id}"))
        return json.loads(found.get("pipeline_runtime", {}).get("workflow_manifest") or "{}")
    except (ApiException, ValueError) as error:
        logger.debug("no workflow of %s: %s", run_id, error)
        return {}


def nodes(workflow: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The pods that Argo made for a task, and what stands for one, those that failed last, else by their time."""
    name = f"{workflow.get('metadata', {}).get('name', '')}.root.{key}"
    given = workflow.get("status", {}).get("nodes", {}).values()
    found = [
        node
        for node in given
        if node.get("type") in ("Pod", "Plugin") and (node["name"] == name or node["name"].startswith(f"{name}."))
    ]
    return sorted(found, key=lambda node: (node.get("phase") in ("Failed", "Error"), str(node.get("startedAt", ""))))


def pod_name(workflow: dict[str, Any], node: dict[str, Any]) -> str:
    """The name of a node's pod, as the API itself derives it."""
    metadata = workflow["metadata"]
    if metadata.get("annotations", {}).get("workflows.argoproj.io/pod-name-format") == "v1":
        return node["id"]
    return f"{metadata['name']}-{node.get('templateName', '')}-{node['id'].rpartition('-')[2]}"
