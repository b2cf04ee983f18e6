"""Schedules, through kfp's own client, over HTTP, to a server that keeps what it is sent."""

import json

import pytest
from kubeflow_api import KubeflowAPI
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.pipelines import launch
from bloomery.pipelines.cli import app
from bloomery.pipelines.kubeflow import Access
from bloomery.pipelines.schedule import cron_lines, five_fields, path_in_the_cluster, schedule, six_fields


@pytest.fixture
def kubeflow():
    with KubeflowAPI() as server:
        yield server


@pytest.fixture
def recipe(tmp_path):
    return launch.load("quickstart", ["monitoring.runner=cluster"], prepare=False)


def test_a_schedule_replaces_the_one_before(kubeflow, recipe):
    made = [
        schedule(
            *(recipe, "quickstart", "s3://logs/shop", check, "0 3 * * 1", Access(kubeflow.url)),
            workdir="s3://logs/state",
            settings=["seed=3"],
        )
        for check in ("*/15 * * * *", "30 */5 * * * *")
    ]
    kept = {run["display_name"]: run for run in kubeflow.kept["recurringruns"]}
    assert len(kubeflow.kept["recurringruns"]) == 2
    assert {name: run["id"] for name, run in kept.items()} == made[1]
    check = kept["quickstart-drift-check"]
    assert check["trigger"]["cron_schedule"]["cron"] == "30 */5 * * * *"
    assert check["no_catchup"] is True and check["max_concurrency"] == 1
    assert kept["quickstart-retraining"]["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    told = json.dumps(check["pipeline_spec"])
    assert all(part in told for part in ("s3://logs/shop", "s3://logs/state", "seed=3"))


def test_a_check_on_a_cluster_keeps_its_decisions_where_pods_find_them(recipe):
    with pytest.raises(ConfigError, match="no pod of a cluster reaches it"):
        schedule(recipe, "quickstart", "s3://log", "* * * * *", None, Access("http://127.0.0.1:9"), workdir="runs")


def test_no_answer_is_a_service_error(recipe, monkeypatch):
    monkeypatch.setattr("bloomery.pipelines.kubeflow.WAITS", (0.01,))
    with pytest.raises(ServiceError, match="did not answer"):
        schedule(recipe, "quickstart", "log", "* * * * *", None, Access("http://127.0.0.1:9"), workdir="s3://b/c")


def test_cron_expressions():
    assert six_fields("*/15 * * * *") == "0 */15 * * * *"
    assert six_fields("30 0 3 ? * MON") == "30 0 3 ? * MON"
    assert five_fields("0 0 3 ? * MON") == "0 3 * * MON"
    with pytest.raises(ConfigError, match="found 4 fields"):
        six_fields("* * * *")
    with pytest.raises(ConfigError, match="the second is 30"):
        five_fields("30 0 3 * * *")


def test_lines_for_cron(tmp_path):
    check, retrain = cron_lines("quickstart", tmp_path, "s3://logs/100%", "0 * * * *", "0 3 * * 1", ["seed=3"])
    assert check.startswith("0 * * * * /") and check.endswith(f">> {tmp_path / 'check.log'} 2>&1")
    assert r" monitor check quickstart --log s3://logs/100\% --workdir " in check and "--set seed=3" in check
    assert f" run quickstart --workdir {tmp_path} --set seed=3 >> " in retrain


def test_where_the_cluster_finds_a_recipe():
    assert path_in_the_cluster("quickstart") == "quickstart"
    assert path_in_the_cluster("../shop.yaml") == "/etc/bloomery/recipes/shop.yaml"


def test_the_command_prints_lines_where_the_runner_is_local(tmp_path):
    result = CliRunner().invoke(app, ["schedule", "quickstart", "--retrain", "0 3 * * 1", "--workdir", str(tmp_path)])
    assert result.exit_code == 0 and result.stdout.startswith("0 3 * * 1 ")
    for arguments in (["schedule", "quickstart"], ["schedule", "quickstart", "--check", "0 * * * *"]):
        assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_an_address_is_of_no_use_to_the_cron_of_this_machine(tmp_path, monkeypatch):
    arguments = ["schedule", "quickstart", "--retrain", "0 3 * * 1", "--workdir", str(tmp_path)]
    told = CliRunner().invoke(app, [*arguments, "--endpoint", "http://localhost:8888"]).exception
    assert isinstance(told, ConfigError) and "monitoring.runner is local" in str(told)
    # One that stands in the environment for other commands is no wish.
    monkeypatch.setenv("KFP_ENDPOINT", "http://localhost:8888")
    assert CliRunner().invoke(app, arguments).stdout.startswith("0 3 * * 1 ")
