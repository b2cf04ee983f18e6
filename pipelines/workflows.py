"""The Argo workflow behind a run on a cluster: the pods of its tasks, and what these left behind."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from bloomery.pipelines import kubeflow

logger = logging.getLogger(__name__)


ITEM = "{loop}.iteration-iterations({index}:{index}).iteration-item.{task}"
"""Where Argo has a task of a loop, as Kubeflow Pipelines compiles it (2.17, argocompiler/dag.go)."""
SELECTED = re.compile(r"""\[["'](\w+)["']\]$""")
"""The key of a loop's item in the expression that chooses it."""


PHASES = {"Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}
"""Argo's phases in the words of the API."""


class Detail(NamedTuple):
    """What the API tells of a task, as Argo's node has it: of tasks in loops the API has names that they share."""

    state: str
    start_time: datetime | None
    end_time: datetime | None


def stages(spec: dict[str, Any]) -> dict[str, str]:
    """The stage of each task of a compiled pipeline by its place in the workflow, in an order in which they can run;
    the tasks of a loop over a list that the pipeline holds stand before the loop."""
    spec = spec.get("pipeline_spec", spec)
    found: dict[str, str] = {}
    for key, task in _ordered(spec.get("root", {}).get("dag", {}).get("tasks", {})).items():
        found |= _of_loop(spec, key, task)
        found[key] = task.get("taskInfo", {}).get("name", key)
    return found


def _ordered(tasks: dict[str, Any]) -> dict[str, Any]:
    """The tasks of a DAG in an order in which they can run."""
    waiting, found = dict(tasks), {}
    while waiting:
        free = [key for key, task in waiting.items() if set(task.get("dependentTasks", ())) <= set(found)]
        for key in free or list(waiting):
            found[key] = waiting.pop(key)
    return found


def _of_loop(spec: dict[str, Any], loop: str, task: dict[str, Any]) -> dict[str, str]:
    """The stages of a loop's tasks, which its items name; none of another task, or of items that only the run knows."""
    over = task.get("parameterIterator", {}).get("items", {}).get("inputParameter")
    source = task.get("inputs", {}).get("parameters", {}).get(over, {}).get("componentInputParameter")
    items = spec["root"].get("inputDefinitions", {}).get("parameters", {}).get(source, {}).get("defaultValue", ())
    inner = spec.get("components", {}).get(task.get("componentRef", {}).get("name"), {}).get("dag", {}).get("tasks", {})
    found = {}
    for index, item in enumerate(items):
        for key, one in _ordered(inner).items():
            chosen = one.get("inputs", {}).get("parameters", {}).get("stage", {}).get("parameterExpressionSelector", "")
            if name := SELECTED.search(chosen):
                found[ITEM.format(loop=loop, index=index, task=key)] = item[name[1]]
    return found


def pods(workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands for a pod, or for what has none, by its time."""
    given = workflow.get("status", {}).get("nodes", {}).values()
    found = [node for node in given if node.get("type") in ("Pod", "Plugin")]
    return sorted(found, key=lambda node: str(node.get("startedAt", "")))


def detail(workflow: Mapping[str, Any], key: str) -> Detail | None:
    """What Argo has for a task as a whole; None before it has begun."""
    name = f"{workflow.get('metadata', {}).get('name', '')}.root.{key}"
    for node in workflow.get("status", {}).get("nodes", {}).values():
        if node["name"] == name:
            return Detail(PHASES.get(node["phase"], ""), time(node, "startedAt"), time(node, "finishedAt"))
    return None


def time(node: Mapping[str, Any], which: str) -> datetime | None:
    """When a node began (`startedAt`) or ended (`finishedAt`); None before."""
    told = node.get(which)
    return datetime.fromisoformat(told) if told and not told.startswith("0001") else None


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
        workflow = json.loads(found.get("pipeline_runtime", {}).get("workflow_manifest") or "{}")
        status = workflow.get("status", {})
        if packed := status.get("compressedNodes"):  # Argo's, of a workflow that is large for etcd
            status["nodes"] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return workflow
    except (ApiException, ValueError, OSError, EOFError) as error:
        logger.debug("no workflow of %s: %s", run_id, error)
        return {}


def nodes(workflow: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The pods that Argo made for a task, and what stands for one, those that failed last, else by their time."""
    name = f"{workflow.get('metadata', {}).get('name', '')}.root.{key}"
    found = [pod for pod in pods(workflow) if pod["name"] == name or pod["name"].startswith(f"{name}.")]
    return sorted(found, key=lambda node: node.get("phase") in ("Failed", "Error"))


def pod_name(workflow: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """The name of a node's pod, as the API itself derives it."""
    metadata = workflow["metadata"]
    if metadata.get("annotations", {}).get("workflows.argoproj.io/pod-name-format") == "v1":
        return node["id"]
    return f"{metadata['name']}-{node.get('templateName', '')}-{node['id'].rpartition('-')[2]}"
