"""The MLflow run of a whole pipeline run, under which those of its steps nest.

On one machine the launcher opens and ends it. On a cluster nothing outlives the pods: there the first task opens it,
the others find it by the id of the run in Kubeflow Pipelines, and the task that the pipeline marks as its last ends it.
Two variables of the environment then name it to the tracker and to the registry.
"""

from __future__ import annotations

import os
import time
from typing import Any

from bloomery.components.core import provenance

EXPERIMENT, PARENT = "MLFLOW_EXPERIMENT_ID", "BLOOMERY_PARENT_RUN_ID"
"""Environment: ids of the experiment and of the run of the pipeline run."""
RECIPE, RECIPE_DIGEST, LAST = "BLOOMERY_RECIPE", "BLOOMERY_RECIPE_DIGEST", "BLOOMERY_LAST_TASK"
"""Environment of a task on a cluster: name of the recipe, digest of its content, whether no task follows."""


def opened(client: Any, recipe: str, name: str, tags: dict[str, str], location: str | None = None) -> str:
    """Open the run `name` in the experiment `recipe`, with `tags` and what is known of code and image; returns its id.

    `location` is where a new experiment keeps its artifacts; none: where MLflow does.
    """
    experiment = _experiment(client, recipe, location)
    known = {"recipe": recipe, "commit": provenance.commit(), "image": provenance.image(), **tags}
    known = {"mlflow.runName": name, **{key: value for key, value in known.items() if value}}
    run = client.create_run(experiment, tags=known).info.run_id
    os.environ[EXPERIMENT], os.environ[PARENT] = experiment, run
    return run


def of_study(client: Any, recipe: str, name: str, location: str | None = None) -> str:
    """Id of the run of the study `name` of a search, under which those of its trials nest; it is made if there is none,
    and closed at once: no process is a study's own, and each trial has its state."""
    experiment = _experiment(client, recipe, location)
    found = client.search_runs([experiment], f"tags.study = '{name}'")
    if found:
        return str(found[0].info.run_id)
    tags = {"mlflow.runName": name, "recipe": recipe, "study": name}
    run = str(client.create_run(experiment, tags=tags).info.run_id)
    client.set_terminated(run)
    return run


def join(client: Any, stage: str) -> None:
    """In a pod of a pipeline: find the run of the pipeline run, or open it, for the task `stage`; elsewhere do nothing.

    Runs that an earlier attempt of this task left open, because its pod was killed, are ended as killed.
    """
    run = os.environ.get(provenance.PIPELINE_RUN)
    if not run:
        return
    if given := os.environ.get("MLFLOW_RUN_ID"):  # the backend's own MLflow plugin keeps the runs
        os.environ[PARENT] = client.get_run(given).data.tags.get("mlflow.parentRunId", given)
        return
    recipe = os.environ.get(RECIPE, "bloomery")
    experiment = _experiment(client, recipe)
    found = _of_pipeline_run(client, experiment, run)
    if not found:
        tags = {"recipe_digest": os.environ.get(RECIPE_DIGEST, ""), "pipeline_run": run}
        own = opened(client, recipe, f"{recipe}-{run[:8]}", tags)
        found = _of_pipeline_run(client, experiment, run) or [own]
        if found[0] != own:  # another task was faster
            client.delete_run(own)
    os.environ[EXPERIMENT], os.environ[PARENT] = experiment, found[0]
    end_what_is_open(client, stage)
    client.update_run(found[0], status="RUNNING")


def end_what_is_open(client: Any, stage: str | None = None) -> None:
    """End as killed each run of `stage`, or of any, that nests under the pipeline run and was left open."""
    parent = os.environ[PARENT]
    wanted = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    if stage:
        wanted += f" and tags.`mlflow.runName` = '{stage}'"
    for run in client.search_runs([os.environ[EXPERIMENT]], wanted):
        client.set_terminated(run.info.run_id, "KILLED")


def end_others(client: Any) -> None:
    """End as killed every run of the experiment that is open, but for this pipeline run's: where none can be alive."""
    for run in client.search_runs([os.environ[EXPERIMENT]], "attributes.status = 'RUNNING'"):
        if run.info.run_id != os.environ[PARENT]:
            client.set_terminated(run.info.run_id, "KILLED")


def leave(client: Any, stage: str, metrics: dict[str, float], status: str) -> None:
    """In a pod of a pipeline: tell the pipeline run what the task `stage` measured, and end it if the task has failed
    or is the last; elsewhere do nothing."""
    if not os.environ.get(provenance.PIPELINE_RUN) or os.environ.get("MLFLOW_RUN_ID"):
        return
    from mlflow.entities import Metric

    parent, now = os.environ[PARENT], int(time.time() * 1000)
    batch = [Metric(f"{stage}.{name}", value, now, 0) for name, value in metrics.items() if value == value]
    for start in range(0, len(batch), 1000):
        client.log_batch(parent, metrics=batch[start : start + 1000])
    if status != "FINISHED" or os.environ.get(LAST):
        client.set_terminated(parent, status)
    if os.environ.get(LAST):
        end_what_is_open(client)


def _experiment(client: Any, name: str, location: str | None = None) -> str:
    """Id of the experiment of that name, which is made if there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:  # another task was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _of_pipeline_run(client: Any, experiment: str, run: str) -> list[str]:
    """Ids of the MLflow runs that stand for a pipeline run, the oldest first."""
    found = client.search_runs([experiment], f"tags.pipeline_run = '{run}'", order_by=["attributes.start_time ASC"])
    return [one.info.run_id for one in found]
