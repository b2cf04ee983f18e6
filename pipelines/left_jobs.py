"""The TrainJobs of a run that is cancelled: its tasks may be killed before they have deleted them."""

from __future__ import annotations

import json
from typing import Any

from bloomery.components.core import train_job


def deleted(run: Any, namespace: str) -> str:
    """Delete the TrainJobs of a run on a cluster, if its pipeline asks for any; what is to be told of it, else ''.

    Where Kubernetes cannot be asked from here, that is the command which deletes them.
    """
    if train_job.GIVEN not in json.dumps(run.pipeline_spec or {}):
        return ""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    from bloomery.pipelines.doctor import ANSWER_SECONDS
    from bloomery.pipelines.doctor_cluster import reaches_kubernetes

    selector = f"{train_job.RUN_LABEL}={run.run_id}"
    by_hand = f"`kubectl -n {namespace} delete {train_job.PLURAL} -l {selector}`"
    if not reaches_kubernetes():
        return f"its nodes train on until {by_hand}: Kubernetes cannot be asked from here"
    try:
        client.CustomObjectsApi().delete_collection_namespaced_custom_object(
            *train_job.KIND, namespace, train_job.PLURAL, label_selector=selector, _request_timeout=ANSWER_SECONDS
        )
    except (ApiException, HTTPError) as error:
        reason = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)[:200]
        return f"its nodes may train on until {by_hand}: Kubernetes answers {reason}"
    return "the TrainJobs of its nodes are deleted"
