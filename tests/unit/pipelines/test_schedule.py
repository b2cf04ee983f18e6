"""Schedules, through kfp's own client, over HTTP, to a server that keeps what it is sent."""

import json
import re

import pytest
from kubeflow_api import KubeflowAPI
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.pipelines import launch, recipe_files
from bloomery.pipelines.cli import app
from bloomery.pipelines.kubeflow import Access
from bloomery.pipelines.schedule import cron_lines, five_fields, schedule, six_fields


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
    for log, workdir, named in (("s3://log", "runs", "--workdir runs"), ("log", "s3://b/c", "--log log")):
        with pytest.raises(ConfigError, match=f"{named}: .*no pod of a cluster reaches it"):
            schedule(recipe, "quickstart", log, "* * * * *", None, Access("http://127.0.0.1:9"), workdir=workdir)


def test_no_answer_is_a_service_error(recipe, monkeypatch):
    monkeypatch.setattr("bloomery.pipelines.kubeflow.WAITS", (0.01,))
    with pytest.raises(ServiceError, match="did not answer"):
        schedule(recipe, "quickstart", "s3://log", "* * * * *", None, Access("http://127.0.0.1:9"), workdir="s3://b/c")


def test_cron_expressions():
    assert six_fields("*/15 * * * *") == "0 */15 * * * *"
    assert six_fields("30 0 3 ? * MON") == "30 0 3 ? * MON"
    assert five_fields("0 0 3 ? * MON") == "0 3 * * MON"
    with pytest.raises(ConfigError, match="found 4 fields"):
        six_fields("* * * *")
    with pytest.raises(ConfigError, match="the second is 30"):
        five_fields("30 0 3 * * *")
    assert six_fields("5,10-20/5 0 1 jan-mar SUN,1-5") == "0 5,10-20/5 0 1 jan-mar SUN,1-5"


@pytest.mark.parametrize(
    ("cron", "wrong"),
    [
        ("a b c d e", "a is no minute; expected 0 to 59"),
        ("60 * * * *", "60 is no minute"),
        ("*/0 * * * *", "*/0 is no minute"),
        ("5/2 * * * *", "5/2 is no minute"),  # of which the crons of machines see a 5
        ("0 20-8 * * *", "20-8 is no hour"),
        ("0 0 0 * *", "0 is no day; expected 1 to 31"),
        ("0 0 * 13 *", "13 is no month; expected 1 to 12 or JAN to DEC"),
        ("0 0 * * 7", "7 is no weekday; expected 0 to 6 or SUN to SAT"),  # Kubeflow Pipelines knows 0 alone
        ("60 0 0 * * *", "60 is no second"),
        ("0 0 1,, * *", "1,, is no day"),
    ],
)
def test_a_field_that_names_no_time_is_told(cron, wrong):
    with pytest.raises(ConfigError, match=re.escape(f"cron {cron!r}: {wrong}")):
        six_fields(cron)


def test_lines_for_cron(tmp_path):
    check, retrain = cron_lines("quickstart", tmp_path, "s3://logs/100%", "0 * * * *", "0 3 * * 1", ["seed=3"])
    assert check.startswith("0 * * * * /") and check.endswith(f">> {tmp_path / 'check.log'} 2>&1")
    assert r" monitor check quickstart --log s3://logs/100\% --workdir " in check and "--set seed=3" in check
    assert f" run quickstart --workdir {tmp_path} --set seed=3 >> " in retrain


def test_a_recipe_of_ones_own_goes_with_the_check_and_its_files_to_the_store(kubeflow, object_store, tmp_path):
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "."}]} for n in "ab"]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    values = {"name": "shop", "registered_model": "shop", "base_model": "org/model"}
    values["chats"] = [{"name": "ours", "path": "chats.jsonl"}]
    task = {"role": "domain", "templates": [{"messages": "messages"}], "verifier": {"kind": "chrf"}}
    task["splits"] = {"test": {"path": "s3://d/t.jsonl"}}
    training = {"sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}}
    values |= {"tasks": {"t": task}, "stages": [training], "monitoring": {"runner": "cluster"}}
    file = tmp_path / "my.yaml"
    file.write_text(json.dumps(values))
    places = ["--log", "s3://logs/shop", "--workdir", "s3://logs/state", "--endpoint", kubeflow.url]
    asked = ["schedule", str(file), "--check", "0 * * * *", *places, "--set", "sft.epochs=3"]
    told = CliRunner().invoke(app, asked).exception
    assert isinstance(told, ConfigError) and "chats.jsonl is of this machine, and pods cannot read it" in str(told)
    assert "recurringruns" not in kubeflow.kept
    result = CliRunner().invoke(app, [*asked, "--upload", "s3://bucket/p"])
    assert result.exit_code == 0, result.exception
    (check,) = kubeflow.kept["recurringruns"]
    (given,) = check["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    elsewhere = tmp_path / "pod" / "recipe.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(given["inputs"]["parameters"]["recipe"]["runtimeValue"]["constant"])
    taken = launch.load(str(elsewhere), prepare=False)
    assert recipe_files.dumped(taken) == elsewhere.read_text()
    assert taken.chats[0].path.startswith("s3://bucket/p/") and taken.chats[0].path.endswith(".jsonl")
    assert [stage.config.epochs for stage in taken.stages if stage.name == "sft"] == [3]


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
