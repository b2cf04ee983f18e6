"""The loop through the command line: a server, its log, drift, one retraining, the server's new answers."""

import fcntl
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml
from colours import bloomery
from service import Service


@pytest.fixture
def served(project, first, tmp_path):
    """A server of the champion, whose recipe watches what it is asked; (server, its workdir)."""
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    question = '{path: "{drifted}", share: SHARE, MORE templates: [{prompt: "{prompt}", answer: "{label}"}]}'
    joined = question.replace("SHARE", "[0.0, 0.6]").replace("MORE", "joins: train,")
    recipe["monitoring"] = {
        "reference_rows": 80,
        "window_rows": 60,
        "policy": {"min_rows": 40, "consecutive_windows": 1},
        "settings": [
            "start_from=champion",
            "sft.epochs=10",
            "sft_2.epochs=2",
            "promotion.gate.max_perplexity_ratio=1.0e+9",
            f"tasks.colour.splits.served={joined}",
            "tasks.colour.splits.test_served=" + question.replace("SHARE", "[0.6, 1.0]").replace("MORE", 'group: "",'),
        ],
    }
    recipe["serving"] = {"flush_seconds": 0.2}
    (project / "watched.yaml").write_text(yaml.safe_dump(recipe))
    with (project / "w" / ".lock").open("w") as lock:  # no run of another test goes on in it
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.copytree(project / "w", tmp_path / "w")
    server = Service(project, "watched.yaml", str(tmp_path / "w"))
    yield server, tmp_path / "w"
    server.stop()


def test_drift_starts_one_retraining_and_the_server_answers_with_its_model(project, first, served):
    server, workdir = served
    before = len(list((workdir / "runs").iterdir()))
    # Whatever part of them is learnt from holds every kind of thing: a model this small knows no other.
    things = [f"{a} {b}" for b in range(20, 40) for a in ("cup", "hat", "sock", "door", "lamp", "chair", "bag")]
    usual = [(f"colour of {thing}?", "red") for thing in things]
    new = [(f"tell me please how heavy the {thing} is", "much") for thing in things]

    def share_right(questions):
        with ThreadPoolExecutor(8) as pool:
            answered = list(pool.map(lambda question: server.ask(question[0]).json(), questions))
        for answer, (_, label) in zip(answered, questions, strict=True):
            told = requests.post(f"{server.url}/v1/feedback", json={"id": answer["id"], "label": label}, timeout=10)
            assert told.ok, told.text
        texts = [answer["choices"][0]["message"]["content"].strip() for answer in answered]
        return sum(text == label for text, (_, label) in zip(texts, questions, strict=True)) / len(questions)

    def wait(done, seconds):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            time.sleep(0.1)

    assert share_right(usual[:80]) == 1.0
    assert share_right(usual[80:100] + new[:40]) == pytest.approx(1 / 3)
    wait(lambda: server.health()["log"]["written"] >= 2 * 140, 30)

    def check(_):
        arguments = ("watched.yaml", "--workdir", str(workdir), "--log", server.log, "--json")
        result = bloomery(project, "monitor", "check", *arguments)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.rstrip("\n").split("\n")[-1])

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(check, range(2)))
    assert [one["started_now"] for one in found].count(True) == 1, found
    assert all(one["action"] == "retrain" for one in found)

    def ended():
        return len([*workdir.glob("runs/*/summary.json")]) > before

    wait(ended, 600)
    run = json.loads(max(workdir.glob("runs/*/summary.json")).read_text())
    assert run["status"] == "promoted", run["reason"]
    assert len(list((workdir / "runs").iterdir())) == before + 1
    wait(lambda: server.health()["version"] == "2", 60)
    assert share_right(new[40:80]) > 0.8
    assert share_right(usual[100:140]) > 0.8
    assert not check(None)["started_now"]
    told = json.loads(bloomery(project, "models", "list", "--workdir", str(workdir), "--json").stdout)
    assert told[0]["version"] == "2" and told[0]["tags"]["started_from"] == "version 1"
