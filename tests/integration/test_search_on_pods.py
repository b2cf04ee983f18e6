"""A compiled search, run as pods would run it: by kfp, in processes that know their pipeline run and MLflow."""

import json

import colours
import pytest
import yaml
from kfp import local

from bloomery.components.core import pipeline_run, provenance
from bloomery.pipelines import fork_server, tune_pipeline

pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")


def test_a_trial_that_fails_is_told_and_the_search_has_its_best(tmp_path, tiny_model, monkeypatch):
    from mlflow import MlflowClient

    project = colours.write_recipe(tmp_path / "project", tiny_model)
    raw = yaml.safe_load((project / "recipe.yaml").read_text())
    training = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 1, "num_validations": 1, "max_length": 64}
    raw["stages"], raw["resources"] = [{"sft": training}], {"retries": 0}
    del raw["quantisation"], raw["ptq"]
    (project / "recipe.yaml").write_text(yaml.safe_dump(raw))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name, value in {
        "MLFLOW_TRACKING_URI": uri,
        "BLOOMERY_STORE": str(tmp_path / "store"),
        provenance.PIPELINE_RUN: "5c9d-of-kfp",
    }.items():
        monkeypatch.setenv(name, value)
    for name in (pipeline_run.EXPERIMENT, pipeline_run.PARENT):
        monkeypatch.delenv(name, raising=False)
    over = ["sft.max_length=64,3"]  # nothing is left of a chat in three tokens
    file = str(project / "recipe.yaml")
    pipeline = tune_pipeline.build(file, [], over, trials=2, sampler="grid", parallel=1)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "p"), raise_on_error=True)
    with fork_server.running():
        pipeline()
    (best,) = (tmp_path / "p").rglob("best")
    told = json.loads(best.read_text())
    assert [row["state"] for row in told["trials"]] == ["complete", "fail"]
    assert told["best"]["settings"] == {"sft.max_length": 64}
    assert "max_length" in told["trials"][1]["error"]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("colours").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["mlflow.runName"]: run.info.status for run in runs if run is not parent}
    assert parent.info.status == "FINISHED"
    assert children == {
        "preflight": "FINISHED",
        "sft_of_trial_0": "FINISHED",
        "sft_of_trial_1": "FAILED",
        "best": "FINISHED",
    }
