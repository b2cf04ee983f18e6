"""Secrets of the environment and of addresses: what is compiled, sent, shown and told holds none of them.

`tests/integration/test_chain.py` holds the same of a whole run on this machine, `test_serving.py` of a server.
"""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from canaries import CANARY, ENVIRONMENT, leaks
from kubeflow_api import KubeflowAPI
from typer.testing import CliRunner

from bloomery.components.core import step, tracking
from bloomery.components.core.errors import BloomeryError, ServiceError, masked
from bloomery.pipelines import kubeflow
from bloomery.pipelines.cli import app

ADDRESS = f"me:{CANARY}@127.0.0.1"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(kubeflow, "WAITS", (0.01,))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{ADDRESS}:9")
    with KubeflowAPI(namespace="team-a", token=ENVIRONMENT["KFP_TOKEN"]) as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url.replace("127.0.0.1", ADDRESS))
        monkeypatch.setenv("KFP_NAMESPACE", "team-a")
        yield server


@pytest.fixture
def file(tmp_path):
    splits = {"train": {"path": "s3://d/q.jsonl"}, "test": {"path": "s3://d/t.jsonl"}}
    task = {"role": "domain", "templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
    values = {
        "name": "shop",
        "registered_model": "m",
        "base_model": "org/model",
        "tasks": {"t": {**task, "splits": splits}},
        "stages": [{"sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}}],
        "promotion": {"models_uri": "s3://d/models"},
        "monitoring": {"alerts": {"webhook": "TEAM_WEBHOOK"}, "runner": "cluster"},
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_what_is_searched_is_found(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_bytes(b"\xff" + ENVIRONMENT["HF_TOKEN"].encode())
    pq.write_table(pa.table({"text": [ENVIRONMENT["AWS_ACCESS_KEY_ID"]] * 9}), tmp_path / "a" / "rows.parquet")
    (tmp_path / "clean").write_text("nothing")
    assert len(leaks(tmp_path)) == 2


def test_the_cluster_is_told_no_secret(api, file, tmp_path, capfd):
    def go(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert CANARY not in f"{result.output} {result.exception}"
        assert result.exception is None or isinstance(result.exception, BloomeryError | SystemExit), result.exception
        return result

    assert go("compile", file, "-o", tmp_path / "pipeline.yaml").exit_code == 0
    assert go("submit", file, "--key", "one").exit_code == 0
    assert go("schedule", file, "--check", "0 * * * *", "--log", "s3://d/log", "--workdir", "s3://d/w").exit_code == 0
    assert go("status", "one").exit_code == 0 and go("logs", "one").exit_code
    assert go("doctor").output
    assert [len(api.kept[kind]) for kind in ("experiments", "runs", "recurringruns")] == [1, 1, 1]
    assert "TEAM_WEBHOOK" in json.dumps(api.kept) and CANARY not in json.dumps(api.kept)
    assert not leaks(tmp_path)
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "one", "--endpoint", f"http://{ADDRESS}:9"),
        ("status", "one", "--token", f"other-{CANARY}"),
        ("submit", "{file}", "--set", f"base_model=https://{ADDRESS}/model"),
        ("submit", "{file}", "--set", f"tasks.t.splits.train.path=https://{CANARY}@127.0.0.1/t.jsonl"),
        ("submit", "{file}", "--set", f"monitoring.alerts.webhook=https://127.0.0.1/services/{CANARY}"),
    ],
)
def test_a_mistake_beside_a_secret_is_told_without_it(api, file, arguments):
    result = CliRunner().invoke(app, [part.format(file=file) for part in arguments])
    assert isinstance(result.exception, BloomeryError)
    assert CANARY not in f"{result.exception} {result.output}"


def test_a_password_in_an_address_is_told_nowhere(tmp_path, monkeypatch, capsys):
    assert masked("http://me:p@ss:word@h/x, mail a@b and s3://bucket/a@b") == "http://***@h/x, mail a@b and s3://bucket/a@b"
    told = f"no answer from postgresql://studies:{CANARY}@h/studies"
    assert str(ServiceError(told)) == "no answer from postgresql://***@h/studies"
    monkeypatch.setenv("BLOOMERY_JOURNAL", str(tmp_path / "journal.jsonl"))
    tracking.journal("failed", "sft", message=told, exit_code=1)
    (tmp_path / "words").touch()
    step.leave_word(told, tmp_path / "words")
    assert not leaks(tmp_path)
    assert json.loads((tmp_path / "journal.jsonl").read_text())["message"] == "no answer from postgresql://***@h/studies"
    for formatter in (step._PlainFormatter("%(message)s"), step._JsonFormatter()):
        record = logging.LogRecord("bloomery", logging.INFO, "", 1, told, None, None)
        assert CANARY not in formatter.format(record)
