"""Drift and the whole check, on a log in which two weeks are alike and later weeks ask for something new."""

import json
import tempfile
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from drifting_log import ROWS_PER_WEEK, START, write_log
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.monitoring import hold, home, trigger
from bloomery.monitoring.check import check, check_task, newest_page
from bloomery.monitoring.config import AlertsConfig, MonitoringConfig, PolicyConfig
from bloomery.monitoring.hold import Hold
from bloomery.pipelines import keys
from bloomery.pipelines.cli import app

NOW = START + timedelta(weeks=6)

CONFIG = MonitoringConfig(
    reference_rows=ROWS_PER_WEEK,
    window_rows=ROWS_PER_WEEK,
    policy=PolicyConfig(min_rows=100, consecutive_windows=2),
)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe that is no recipe: the retraining is started for real, and ends at once with an error."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: 1\n")
    return path


def test_alike_weeks_are_no_drift(tmp_path, recipe):
    result = check(recipe, tmp_path, write_log(tmp_path / "log.jsonl", [0, 0]), CONFIG, now=NOW)
    assert result["action"] == "none"
    assert result["drifted_signals"] == []
    assert result["started"] is None
    assert "No drift: sql:3" in Path(result["decision_page"]).read_text()


def test_drifted_weeks_start_one_retraining(tmp_path, recipe):
    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4])
    first_week = check(recipe, tmp_path, log, CONFIG, now=NOW)
    assert first_week["action"] == "wait"
    assert {"prompt_text", "prompt_novelty", "prompt_characters", "feedback"} <= set(first_week["drifted_signals"])
    assert "latency_seconds" not in first_week["drifted_signals"]
    assert "1 window in a row; 2 in a row are needed" in first_week["reason"]

    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4, 0.5])
    dry = check(recipe, tmp_path, log, CONFIG, now=NOW, start=False)
    assert dry["action"] == "retrain" and dry["started"] is None
    assert f"run {recipe} --workdir {tmp_path}" in dry["command"]

    second_week = check(recipe, tmp_path, log, CONFIG, now=NOW)
    assert second_week["action"] == "retrain" and second_week["started_now"]
    _the_command_ended(tmp_path, second_week["window"])
    assert "name: found 1" in Path(second_week["started"]["log"]).read_text()
    retried = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(minutes=5))
    assert retried["started_now"] and "has not begun, and is started again" in retried["reason"]
    assert retried["started"]["attempts"] == 2 and retried["started"]["time"] == second_week["started"]["time"]

    _the_command_ended(tmp_path, second_week["window"])
    keys.claim(tmp_path, second_week["window"], "20250217-000000-sql")
    again = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(days=9))
    assert again["action"] == "retrain" and not again["started_now"]
    assert again["started"]["run"] == "20250217-000000-sql"
    assert len(list((tmp_path / "monitoring" / "triggers").glob("*.json"))) == 1

    folder = tmp_path / "monitoring" / second_week["window"]
    assert json.loads((folder / "decision.json").read_text()) == again
    assert len((folder / "window.jsonl").read_text().splitlines()) == ROWS_PER_WEEK
    assert "<html" in (folder / "drift.html").read_text()[:2000]
    report = json.loads((folder / "drift.json").read_text())
    assert {"gift", "cards"} <= set(report["novel_words"])
    assert "상품권" in {word for example in report["examples"] for word in example["novel_words"]}
    assert all("gift" in e["prompt"] or "상품권" in e["prompt"] for e in report["examples"])
    page = (folder / "decision.md").read_text()
    assert page.startswith("# Retrain: sql:3") and "gift" in page and "promoted only if" in page

    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4, 0.5, 0.5])
    third_week = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(hours=1))
    assert third_week["action"] == "wait" and "cooling down" in third_week["reason"]


def test_before_the_first_window_nothing_is_judged(tmp_path, recipe):
    result = check(recipe, tmp_path, write_log(tmp_path / "log.jsonl", [0]), CONFIG, now=NOW)
    assert result["window"] is None
    assert result["reason"] == "150 rows of sql:3 so far; a reference and a full window are 150 + 150 rows"
    assert not (tmp_path / "monitoring").exists()


def test_the_windows_rows_can_be_trained_on(tmp_path, recipe):
    config = CONFIG.model_copy(
        update={
            "settings": ["tasks.sql.splits.unlabelled.path={window}"],
            "policy": PolicyConfig(min_rows=100, consecutive_windows=1),
        }
    )
    log = write_log(tmp_path / "log.jsonl", [0, 0.5])
    result = check(recipe, tmp_path, log, config, settings=["seed=3"], now=NOW, start=False)
    assert "--set seed=3 --set" in result["command"]
    assert (
        f"tasks.sql.splits.unlabelled.path={tmp_path}/monitoring/{result['window']}/window.jsonl" in result["command"]
    )


def test_a_retraining_that_a_person_holds_or_that_runs_is_not_started(tmp_path, recipe):
    log = write_log(tmp_path / "log.jsonl", [0, 0.5])
    config = CONFIG.model_copy(update={"policy": PolicyConfig(min_rows=100, consecutive_windows=1)})
    held = Hold(is_held=True, who="kim", time=NOW, reason="migration")
    hold.record(tmp_path, held)
    result = check(recipe, tmp_path, log, config, now=NOW)
    assert result["action"] == "wait" and "on hold by kim: migration" in result["reason"]
    hold.record(tmp_path, held.model_copy(update={"is_held": False}))
    assert check(recipe, tmp_path, log, config, now=NOW)["started_now"]
    _the_command_ended(tmp_path, result["window"])
    hold.record(tmp_path, held)
    result = check(recipe, tmp_path, log, config, now=NOW)
    assert not result["started_now"] and "on hold" in result["reason"]


def test_the_drifted_slice_is_what_is_new_in_every_drifted_window_in_a_row(tmp_path, recipe):
    log = write_log(tmp_path / "log.jsonl", [0, 0.4, 0.4])
    config = CONFIG.model_copy(update={"settings": ["tasks.sql.splits.unlabelled.path={drifted}"]})
    result = check(recipe, tmp_path, log, config, now=NOW, start=False)
    folder = tmp_path / "monitoring"
    slices = [file.read_text().splitlines() for file in sorted(folder.glob("*/drifted.jsonl"))]
    assert len(slices) == 2
    for lines in slices:
        prompts = [json.loads(line)["prompt"] for line in lines]
        assert len(prompts) == len(set(prompts)) >= 8
        assert sum("gift" in prompt or "상품권" in prompt for prompt in prompts) >= 0.6 * len(prompts)
    assert (folder / result["window"] / "retraining.jsonl").read_text().splitlines() == slices[0] + slices[1]


def test_on_a_store_the_next_pod_knows_what_the_one_before_decided(tmp_path, recipe):
    store, log = tmp_path / "store", write_log(tmp_path / "log.jsonl", [0, 0.5])
    config = CONFIG.model_copy(
        update={
            "policy": PolicyConfig(min_rows=100, consecutive_windows=1),
            "runner": "cluster",
            "settings": ["tasks.sql.splits.unlabelled.path={drifted}"],
        }
    )
    for attempt in (1, 2):  # the recipe is none, so `bloomery submit` refuses it each time
        with home.at(f"file://{store}") as here, pytest.raises(ServiceError, match="the next check tries again"):
            check(recipe, here, log, config, settings=["seed=3"], now=NOW)
        (record,) = (store / "monitoring" / "triggers").glob("*.json")
        kept = json.loads(record.read_text())
        folder = store / "monitoring" / kept["key"]
        assert (kept["attempts"], kept["status"]) == (attempt, "starting")
        assert kept["log"] == f"file://{folder}/retraining.log"
        told = f"tasks.sql.splits.unlabelled.path=file://{folder}/retraining.jsonl"
        assert kept["command"][1:4] == ["submit", str(recipe), "--key"]
        assert kept["command"][-3:] == ["seed=3", "--set", told]
        assert (folder / "retraining.jsonl").read_text() and (folder / "drift.html").is_file()
        assert "name: found 1" in (folder / "retraining.log").read_text()
    arguments = ["--workdir", f"file://{store}", "--reason", "migration", "--who", "kim"]
    assert CliRunner().invoke(app, ["monitor", "hold", *arguments]).exit_code == 0
    with home.at(f"file://{store}") as here:
        held = check(recipe, here, log, config, now=NOW)
    assert held["action"] == "wait" and "on hold by kim: migration" in held["reason"]
    assert held["decision_page"] == f"file://{folder}/decision.md"
    explained = CliRunner().invoke(app, ["monitor", "explain", "--workdir", f"file://{store}"])
    assert explained.stdout.strip() == (folder / "decision.md").read_text().strip()
    assert not list(store.rglob("*.lock"))


def test_another_pod_starts_again_by_the_recipe_that_its_check_was_given(tmp_path):
    """The first pod is gone with its files when the second runs the command that the first recorded."""
    store, log = f"file://{tmp_path}/store", write_log(tmp_path / "log.jsonl", [0, 0.5])
    policy = {"min_rows": 100, "consecutive_windows": 1}
    asked = {"reference_rows": ROWS_PER_WEEK, "window_rows": ROWS_PER_WEEK, "policy": policy, "runner": "cluster"}
    outputs = [SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("decision", "page", "metrics")]
    for attempt in ("1", "2"):
        with pytest.raises(SystemExit) as ended:
            check_task(f"name: {attempt}\n", store, str(log), asked, [], *outputs)
        assert ended.value.code == ServiceError.exit_code
        (told,) = (tmp_path / "store" / "monitoring").glob("*/retraining.log")
        assert f"name: found {attempt}" in told.read_text()
        (Path(tempfile.gettempdir()) / "bloomery-recipe.yaml").unlink()


def test_a_retraining_on_this_machine_cannot_be_kept_on_a_store(tmp_path, recipe):
    with home.at(f"file://{tmp_path}/store") as here, pytest.raises(ConfigError, match="set it to cluster"):
        check(recipe, here, tmp_path / "log.jsonl", CONFIG, now=NOW)


def test_a_record_is_put_after_the_rows_that_it_speaks_of(tmp_path):
    (tmp_path / "store" / "monitoring" / "w1" / "retraining.jsonl" / "in the way").mkdir(parents=True)
    with pytest.raises(ServiceError, match="the store did not answer"), home.at(f"file://{tmp_path}/store") as here:
        for name in ("triggers/w1.json", "w1/retraining.jsonl"):
            (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (here.folder / name).write_text("{}")
    assert not (tmp_path / "store" / "monitoring" / "triggers").exists()


def test_what_an_object_store_refuses_is_told_with_its_reason_and_what_passes_is_tried_again(object_store, caplog):
    caplog.set_level("INFO", "bloomery")
    uri = f"{object_store.uri}/shop"
    with home.at(uri) as here:
        for name in ("triggers/w1.json", "holds.jsonl", "w1/decision.json", "w1/window.jsonl", "w2/decision.json"):
            (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (here.folder / name).write_text(name)
    puts = [request for request in object_store.requests if request.startswith("PUT")]
    assert len(puts) == 5 and "triggers/w1.json" in puts[-1]
    object_store.fail("503", "GET .*list-type", times=2)
    with home.at(uri) as here:
        fetched = {file.relative_to(here.folder).as_posix() for file in here.folder.rglob("*.json*")}
        assert fetched == {"triggers/w1.json", "holds.jsonl"}  # which every check needs
        here.fetch("*/decision.json", "w1/window.jsonl", "w9/decision.json")
        assert (here.folder / "w2" / "decision.json").read_text() == "w2/decision.json"
        assert (here.folder / "w1" / "window.jsonl").is_file() and not (here.folder / "w9").exists()
    assert caplog.text.count("again in") == 2
    assert len([request for request in object_store.requests if request.startswith("PUT")]) == 5  # nothing has changed
    for refusal, advice in (("AccessDenied", "AccessDenied"), ("ExpiredToken", "renew the credentials")):
        object_store.fail(refusal, "GET .*list-type")
        with pytest.raises(ConfigError, match=f"refuses: {refusal}.*{advice}|{advice}"), home.at(uri):
            pass
    object_store.fail("503", "GET .*list-type", times=9)
    with pytest.raises(ServiceError, match="did not answer"), home.at(uri):
        pass


def test_people_are_told_once(tmp_path, recipe, monkeypatch):
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TEAM_WEBHOOK", f"http://127.0.0.1:{server.server_port}/")
    alerts = AlertsConfig(webhook="TEAM_WEBHOOK", on=["wait"])
    policy = PolicyConfig(min_rows=100, consecutive_windows=2, severe_effect=1.0)
    config = CONFIG.model_copy(update={"alerts": alerts, "policy": policy})
    log = write_log(tmp_path / "log.jsonl", [0, 0.5])
    for _ in range(2):
        result = check(recipe, tmp_path, log, config, now=NOW)
    server.shutdown()
    server.server_close()
    assert result["action"] == result["alerted"] == "wait"
    (message,) = received
    assert message["text"].startswith("Waiting: sql:3: ") and "New words: " in message["text"]
    assert message["drifted_signals"] == result["drifted_signals"]


def test_embeddings_of_a_checkpoint_are_compared(tmp_path, recipe, tiny_model):
    log = write_log(tmp_path / "log.jsonl", [0, 0.5])
    config = CONFIG.model_copy(update={"encoder": str(tiny_model), "embedding_rows": 100})
    result = check(recipe, tmp_path, log, config, now=NOW, start=False)
    assert "prompt_embedding" in result["drifted_signals"]
    missing = CONFIG.model_copy(update={"encoder": str(tmp_path / "none")})
    result = check(recipe, tmp_path, log, missing, now=NOW, start=False)
    assert "prompt_embedding" not in result["drifted_signals"]
    assert "no config.json" in Path(result["decision_page"]).read_text()


def test_the_newest_page_or_that_of_a_window(tmp_path, recipe):
    with pytest.raises(ConfigError, match="^s3://b/shop/monitoring: no decision there yet"):
        newest_page(home.Home(tmp_path, "s3://b/shop"))  # the copy of a store
    place = home.Home(tmp_path)
    log = write_log(tmp_path / "log.jsonl", [0, 0])
    first = check(recipe, tmp_path, log, CONFIG, now=NOW)["window"]
    log = write_log(tmp_path / "log.jsonl", [0, 0, 0])
    second = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(hours=1))["window"]
    assert newest_page(place).parent.name == second
    assert newest_page(place, first).read_text().startswith("# No drift")
    with pytest.raises(ConfigError, match=f"known: {first}, {second}"):
        newest_page(place, "w9")


def _the_command_ended(workdir: Path, window: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with trigger.opened(workdir) as triggers:
            if not triggers.is_running(triggers.of(window)):
                return
        time.sleep(0.05)
    raise AssertionError("the command runs still")
