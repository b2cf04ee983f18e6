"""Tasks of one run in Kubeflow Pipelines are one run in MLflow, on a real tracking database."""

import os
import signal
from pathlib import Path

import pytest

from bloomery.components.core import pipeline_run, provenance, tracking


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def client(database, monkeypatch, request):
    """A client, in the environment of a pod; the experiment is named after the test."""
    import mlflow
    from mlflow import MlflowClient

    for variable in (pipeline_run.EXPERIMENT, pipeline_run.PARENT, pipeline_run.LAST, "MLFLOW_RUN_ID"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv(provenance.PIPELINE_RUN, f"2c5f0a1b-{request.node.name}")
    monkeypatch.setenv(pipeline_run.RECIPE, request.node.name)
    monkeypatch.setenv(pipeline_run.RECIPE_DIGEST, "d1")
    mlflow.set_tracking_uri(database)
    yield MlflowClient()
    mlflow.set_tracking_uri(None)


def pod(stage, monkeypatch, metrics=None, *, last=False):
    """What a pod does: it knows its pipeline run, and not what other pods have found out."""
    for variable in (pipeline_run.EXPERIMENT, pipeline_run.PARENT):
        monkeypatch.delenv(variable, raising=False)
    if last:
        monkeypatch.setenv(pipeline_run.LAST, "1")
    with tracking.track(stage, {"seed": 17}) as tracker:
        if metrics is None:
            return tracker  # as one that dies leaves it
        tracker.finish(metrics)
    return tracker


def runs(client, name):
    """(parent, children by name) of an experiment."""
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return parent, sorted((run.data.tags["mlflow.runName"], run.info.status) for run in children)


def test_the_tasks_of_a_pipeline_run_nest_under_one_run_which_the_last_ends(client, monkeypatch, request):
    pod("preflight", monkeypatch, {"preflight/tasks": 2.0})
    parent, _ = runs(client, request.node.name)
    assert parent.info.status == "RUNNING"
    pod("sft", monkeypatch, {"sft/loss": 0.5, "pass@1": 0.25})
    pod("promotion", monkeypatch, {"promotion/promoted": 1.0}, last=True)
    parent, children = runs(client, request.node.name)
    assert children == [("preflight", "FINISHED"), ("promotion", "FINISHED"), ("sft", "FINISHED")]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["pipeline_run"] == os.environ[provenance.PIPELINE_RUN]
    assert (parent.data.tags["recipe"], parent.data.tags["recipe_digest"]) == (request.node.name, "d1")
    assert parent.data.tags.get("commit", "") == provenance.commit()
    assert bool(provenance.commit()) == (Path(__file__).parents[4] / ".git").exists()
    assert parent.data.metrics["sft.sft/loss"] == 0.5 and parent.data.metrics["sft.pass_at_1"] == 0.25
    assert os.environ[pipeline_run.PARENT] == parent.info.run_id  # which the registry names as the version's run


def test_a_task_that_was_killed_is_ended_by_its_next_attempt(client, monkeypatch, request):
    pod("sft", monkeypatch)
    assert runs(client, request.node.name)[1] == [("sft", "RUNNING")]
    pod("dedup", monkeypatch, {})  # another task may run beside it
    assert runs(client, request.node.name)[1] == [("dedup", "FINISHED"), ("sft", "RUNNING")]
    pod("sft", monkeypatch, {})
    assert runs(client, request.node.name)[1] == [("dedup", "FINISHED"), ("sft", "FINISHED"), ("sft", "KILLED")]


def test_a_failed_task_ends_the_pipeline_run_until_it_is_tried_again(client, monkeypatch, request):
    with pytest.raises(ValueError), tracking.track("sft", {}):
        raise ValueError("no")
    parent, children = runs(client, request.node.name)
    assert (parent.info.status, children) == ("FAILED", [("sft", "FAILED")])
    pod("sft", monkeypatch, {})
    assert runs(client, request.node.name)[0].info.status == "RUNNING"


def test_sigterm_leaves_no_run_open(client, request):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, tracking.track("dedup", {}):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    parent, children = runs(client, request.node.name)
    assert (parent.info.status, children) == ("KILLED", [("dedup", "KILLED")])


def test_outside_of_a_pod_nothing_is_joined(client, monkeypatch):
    monkeypatch.delenv(provenance.PIPELINE_RUN)
    pipeline_run.join(client, "sft")
    assert pipeline_run.PARENT not in os.environ
