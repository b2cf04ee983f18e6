"""Schedules and keyed runs, through kfp's own client, over HTTP, to a server that keeps what it is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.pipelines import launch
from bloomery.pipelines.cli import app
from bloomery.pipelines.schedule import cron_lines, five_fields, path_in_the_cluster, schedule, six_fields


@pytest.fixture
def kubeflow():
    """The part of the Kubeflow Pipelines API that is used here: experiments, runs and recurring runs, in memory."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def place(self):
            kind, _, identity = urlsplit(self.path).path.removeprefix("/apis/v2beta1/").partition("/")
            return kind, identity

        def do_GET(self):
            kind, identity = self.place()
            items = self.server.kept.get(kind, [])
            if kind == "healthz":
                return self.answer({"multi_user": False})
            if identity:
                return self.answer(next(item for item in items if item["id"] == identity))
            asked = parse_qs(urlsplit(self.path).query).get("filter")
            if asked:
                (predicate,) = json.loads(asked[0])["predicates"]
                value = predicate.get("string_value", predicate.get("stringValue"))
                items = [item for item in items if item.get(predicate["key"]) == value]
            name = {"recurringruns": "recurringRuns"}.get(kind, kind)
            return self.answer({name: items, "total_size": len(items)})

        def do_POST(self):
            kind, _ = self.place()
            item = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = self.server.made = self.server.made + 1
            identity = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}[kind]
            item |= {identity: f"{kind}-{number}", "id": f"{kind}-{number}"}
            self.server.kept.setdefault(kind, []).append(item)
            self.answer(item)

        def do_DELETE(self):
            kind, identity = self.place()
            self.server.kept[kind] = [item for item in self.server.kept[kind] if item["id"] != identity]
            self.answer({})

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.kept, server.made = {}, 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path):
    return launch.load("quickstart", ["monitoring.runner=cluster"], prepare=False)


def test_a_schedule_replaces_the_one_before(kubeflow, recipe, on_a_short_stack):
    made = [
        on_a_short_stack(
            lambda check: schedule(
                *(recipe, "quickstart", "s3://logs/shop", check, "0 3 * * 1", kubeflow.url),
                workdir="s3://logs/state",
                settings=["seed=3"],
            ),
            check,
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
        schedule(recipe, "quickstart", "s3://log", "* * * * *", None, "http://127.0.0.1:9", workdir="bloomery-runs")


def test_a_key_names_one_submitted_run(kubeflow, recipe, on_a_short_stack):
    def submit(key):
        return on_a_short_stack(launch.submit, recipe, kubeflow.url, key)

    first = submit("shop-3-w0004")
    assert submit("shop-3-w0004") == first
    assert submit("shop-3-w0005") != first
    assert [run["display_name"] for run in kubeflow.kept["runs"]] == ["shop-3-w0004", "shop-3-w0005"]
    kubeflow.kept["runs"][0]["state"] = "RUNNING"
    assert launch.is_unfinished(kubeflow.url, "shop-3-w0004")
    kubeflow.kept["runs"][0]["state"] = "FAILED"
    assert not launch.is_unfinished(kubeflow.url, "shop-3-w0004")
    assert not launch.is_unfinished(kubeflow.url, "never")


def test_no_answer_is_a_service_error(recipe):
    with pytest.raises(ServiceError, match="did not answer"):
        schedule(recipe, "quickstart", "log", "* * * * *", None, "http://127.0.0.1:9", workdir="s3://b/c")


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
