"""The whole chain through the command line, on a tiny real model: promoted, reused, resumed, refused."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from canaries import CANARY, leaks
from colours import bloomery, outputs, run
from service import BLOOMERY

from bloomery.components.core import interpreter
from bloomery.pipelines import history

REUSED_ALWAYS = {"preflight", "promotion"}


def test_raw_text_becomes_a_promoted_model(project, first):
    from bloomery.pipelines.post_training import stages
    from bloomery.pipelines.recipe import load

    assert first["status"] == "promoted", first["reason"]
    assert first["model"] == {"name": "colours", "version": "1", "aliases": ["candidate", "champion"]}
    assert set(first["stages"]) == set(stages(load(str(project / "recipe.yaml"))))
    # On a task this small a stage may leave the model as it was: its evaluation is then known.
    assert all(stage.startswith("evaluation_") or stage == "sft_2" for stage in first["cached_steps"])
    assert first["stages"]["evaluation_base"]["evaluation/colour.test.accuracy"] == 0.0
    assert first["stages"]["evaluation_ptq"]["evaluation/colour.test.accuracy"] == 1.0
    assert first["stages"]["dedup"]["dedup/exact_duplicates"] == 1
    assert first["stages"]["data_curation"]["data_curation/rejects"] == 1
    assert first["exit_code"] == 0 and first["seconds"] > 0 and first["error"] is None
    report = Path(first["report"]).read_text()
    assert "promoted" in report and "http-equiv" not in report and "<script" not in report


def test_mlflow_holds_one_run_with_a_nested_run_a_step(project, first):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project / 'w' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("colours")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    names = {r.data.tags["mlflow.runName"] for r in runs if "mlflow.parentRunId" in r.data.tags}
    assert len(parents) == 1 and parents[0].data.tags["status"] == "promoted"
    assert names == set(first["stages"]) - set(first["cached_steps"])
    sft = next(r for r in runs if r.data.tags["mlflow.runName"] == "sft")
    assert sft.data.params["learning_rate"] == "0.01" and len(client.get_metric_history(sft.info.run_id, "loss")) > 3


def test_an_unchanged_run_reuses_every_step_and_keeps_the_champion(project, first):
    second = run(project, "w")
    assert second["status"] == "promoted" and second["model"]["version"] == "1"
    assert set(second["cached_steps"]) == set(first["stages"]) - REUSED_ALWAYS
    assert second["stages"]["evaluation_champion"] == first["stages"]["evaluation_ptq"]


def test_a_changed_number_runs_its_step_and_the_later_ones_only(project, first):
    changed = run(project, "w", "--set", "dpo.beta=0.7")
    again = set(changed["stages"]) - set(changed["cached_steps"])
    after = {stage for stage in again if stage.startswith(("ptq", "evaluation_ptq"))}
    assert {"dpo"} <= again <= {"dpo", "evaluation_dpo", *after, *REUSED_ALWAYS}
    # As good as the champion is not better: the champion stays.
    assert changed["status"] == "rejected" and changed["exit_code"] == 5 and changed["model"] is None


def test_a_killed_run_goes_on_and_ends_with_the_same_model(project, first, tmp_path):
    # What was finished before and would come after is known; both fine-tunings are to be done.
    shutil.copytree(project / "w" / "store", tmp_path / "store", ignore=shutil.ignore_patterns("sft"))
    process = subprocess.Popen(
        [BLOOMERY, "run", "recipe.yaml", "--workdir", str(tmp_path)],
        cwd=project,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={key: value for key, value in os.environ.items() if key != interpreter.PYTHON},  # tasks that die with it
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        told = "".join(file.read_text() for file in tmp_path.glob("runs/*/journal.jsonl"))
        if '"event": "started", "stage": "sft"' in told:
            break
        time.sleep(0.05)
    assert history.runs(tmp_path)[0]["status"] == "running"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert history.runs(tmp_path)[0]["status"] == "ended without a word"
    resumed = run(project, str(tmp_path))
    assert resumed["status"] == "promoted"
    assert {"data_curation", "dedup", "synthetic_data", "cpt"} <= set(resumed["cached_steps"])
    assert "sft" not in resumed["cached_steps"]
    ours, before = (outputs(summary)["ptq", "model"].manifest.digest for summary in (resumed, first))
    assert ours == before


def test_the_registry_commands_tell_and_turn_back(project, first):
    listed = json.loads(bloomery(project, "models", "list", "--workdir", "w", "--json").stdout)
    assert listed[-1]["version"] == "1" and "champion" in listed[-1]["aliases"]
    refused = bloomery(project, "models", "rollback", "colours", "--workdir", "w")
    assert refused.returncode == 5 and "no previous version" in refused.stderr
    unknown = bloomery(project, "models", "promote", "colours", "9", "--workdir", "w")
    assert unknown.returncode == 2 and "known: 1" in unknown.stderr
    assert "colours" in bloomery(project, "ls", "--workdir", "w").stdout
    assert "evaluation_ptq" in bloomery(project, "show", "last", "--workdir", "w").stdout


def test_a_step_runs_alone_on_artifacts(project, first, tmp_path):
    model, tasks = (str(outputs(first)[port].path) for port in (("ptq", "model"), ("preflight", "tasks")))
    ports = ("--model", model, "--tasks", tasks, "--results", str(tmp_path / "r"))
    result = bloomery(project, "step", "evaluation", *ports, "--set", "repeats=3")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == first["stages"]["evaluation_ptq"]
    wrong = bloomery(project, "step", "evaluation", "--model", model, "--task", tasks)
    assert wrong.returncode == 2
    assert "missing --tasks FOLDER (tasks/1)" in wrong.stderr and "unknown argument --task" in wrong.stderr


def test_no_secret_of_the_environment_is_written_anywhere(project, first):
    """Run folders with journal, report and kfp's log, the store, MLflow's database, and the published models."""
    assert not leaks(project)


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["--set", "sft.epoks=3"], 2, "sft.epoks: unknown key; did you mean 'epochs'?"),
        (["--set", "sft.epochs=many"], 2, 'sft.epochs: found "many"'),
        (["--set", "data_curation.sources=[{name: a, path: nothing}]"], 3, "nothing: no file there"),
        (["--set", "data_curation.min_words=1000"], 3, "too_short"),
        (["--set", f"base_model=https://me:{CANARY}@host/model"], 2, "base_model: found a URL with a user"),
    ],
)
def test_a_mistake_is_one_message_and_its_exit_code(project, settings, code, told):
    result = bloomery(project, "run", "recipe.yaml", "--workdir", "mistakes", *settings)
    assert result.returncode == code, result.stderr
    assert told in result.stderr and "Traceback" not in result.stderr


def test_an_unreachable_tracking_server_is_told_before_any_work(project, tmp_path):
    result = bloomery(
        project, "run", "recipe.yaml", "--workdir", str(tmp_path), MLFLOW_TRACKING_URI=f"http://me:{CANARY}@127.0.0.1:9"
    )
    assert result.returncode == 7 and "http://***@127.0.0.1:9 did not answer" in result.stderr
    assert not leaks(tmp_path)
    assert "Traceback" not in result.stderr and "Retrying" not in result.stderr


def test_a_full_disk_is_told_and_nothing_half_written_is_taken_for_whole(project, tmp_path):
    if os.geteuid() != 0 or subprocess.run(["mount", "--version"], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        result = bloomery(project, "run", "recipe.yaml", "--workdir", str(small / "w"))
        assert result.returncode == 7 and (
            "no space left" in result.stderr or "bytes free on the disk" in result.stderr
        ), result.stderr
        assert "Traceback" not in result.stderr
    finally:
        subprocess.run(["umount", "-l", str(small)])
