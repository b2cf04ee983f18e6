"""Two processes that share a training learn what one learns from as many rows an optimiser step."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from chats import preference_row, write_chats

from bloomery.components.core import artifact, processes, worker
from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError, DivergedError, ServiceError
from bloomery.components.core.records import Document, Preference, content_id
from bloomery.components.core.step import config_class, execute, run_step
from bloomery.components.cpt.step import run as cpt
from bloomery.components.dpo.step import run as dpo
from bloomery.components.reward_model.step import run as reward_model
from bloomery.components.sft.step import run as sft

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
WORDS = ["tea", "coffee", "hat", "lamp", "bag", "shoe"]
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}


@pytest.fixture
def work(tiny_model, make_tasks, tmp_path):
    """By name: a step's `run`, its settings beside the batch, and its inputs. Rows divide by 8."""
    for module in ("sft_trainer", "dpo_trainer", "reward_trainer"):
        importlib.import_module(f"trl.trainer.{module}")  # once, and not in every fork
    artifact.seal(tiny_model, "model/1")
    pairs = [(f"say {a} and {b}", f"{a} {b}") for a in WORDS for b in WORDS][:32]
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in pairs[:5]]
    preferences = [preference_row(prompt, answer, answer[::-1]) for prompt, answer in pairs]
    artifact.write_rows(tmp_path / "pairs", "preference/3", Preference.table(preferences))
    facts = {"source": "s:f#1", "language": "en", "time": "", "quality": None, "general": False}
    texts = [f"{prompt}: {answer}. ".ljust(63, "x") for prompt, answer in pairs]  # 64 tokens with the end
    documents = [{**facts, "id": content_id(text), "text": text} for text in texts]
    artifact.write_rows(tmp_path / "documents", "document/2", Document.table(documents))
    chats = {"chats": write_chats(tmp_path / "chats", pairs), "tasks": make_tasks(TASK, rows), "base_model": tiny_model}
    preferred = {"preferences": tmp_path / "pairs", "base_model": tiny_model}
    read = {"documents": tmp_path / "documents", "base_model": tiny_model}
    return {
        "sft": (sft, {"num_validations": 2}, chats),
        "packed, with prompts": (sft, {"packing": True, "prompt_loss_weight": 0.3, "num_validations": 0}, chats),
        "dpo": (dpo, {"validation_share": 1e-9}, preferred),
        "reward model": (reward_model, {"validation_share": 1e-9}, preferred),
        "cpt": (cpt, {"validation_share": 1e-9, "replay_share": 0.0}, read),
    }


def shared(work, name, folder: Path, **settings) -> list:
    """The step in two forks, which the elastic launcher would start; their exit codes are awaited by `ended`."""
    run, own, inputs = work[name]
    config = parse(config_class(run), {**TRAINING, **own, "batch_size": 4, **settings}, where=name)
    port = "reward_model" if run is reward_model else "model"
    folder.mkdir(exist_ok=True)
    asked = (run, name, config, inputs, {port: folder / "model"}, {})
    (folder / processes.WORK).write_bytes(pickle.dumps((asked, folder / "checkpoints")))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def begin(rank):
        os.environ.update({**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        worker.main(folder)

    started = [get_context("fork").Process(target=begin, args=(rank,)) for rank in range(2)]
    for process in started:
        process.start()
    return started


def ended(started) -> list[int]:
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def alone(work, name, folder: Path, **settings) -> dict:
    run, own, inputs = work[name]
    port = "reward_model" if run is reward_model else "model"
    return execute(run, name, {**TRAINING, **own, **settings}, inputs, {port: folder / "model"})


def losses(result, *names) -> list[list[float]]:
    return [[entry[name] for name in names] for entry in result["history"] if names[0] in entry]


@pytest.mark.parametrize("name", ["sft", "packed, with prompts", "dpo", "reward model", "cpt"])
def test_losses_are_those_of_one_process_with_twice_the_batch(work, name, tmp_path):
    more = {"gradient_accumulation_steps": 2} if name == "sft" else {}
    assert ended(shared(work, name, tmp_path / "two", **more)) == [0, 0]
    two = pickle.loads((tmp_path / "two" / processes.RESULT).read_bytes())
    one = alone(work, name, tmp_path / "one", batch_size=8, **more)
    told = ("loss", "grad_norm", "learning_rate", *(["num_tokens"] if "num_tokens" in one["history"][0] else []))
    assert len(losses(one, *told)) > 1
    for found, expected in zip(losses(two, *told), losses(one, *told), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert losses(two, "eval_loss") == [pytest.approx(loss, rel=1e-5) for loss in losses(one, "eval_loss")]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-5)


def digest(folder: Path) -> str:
    return artifact.read_manifest(folder / "model").digest


def test_killed_it_goes_on_from_a_checkpoint_to_the_same_digest(work, tmp_path):
    often = {"checkpoint": {"every_minutes": 1e-4}, "num_validations": 0}
    often["adapter"] = {"kind": "lora", "rank": 4, "dropout": 0.1}
    assert ended(shared(work, "sft", tmp_path / "whole", **often)) == [0, 0]
    started = shared(work, "sft", tmp_path / "killed", **often)
    while started[0].is_alive() and not list(tmp_path.glob("killed/checkpoints/checkpoint-*")):
        time.sleep(0.01)
    for process in started:
        process.kill()
    assert ended(started) == [-signal.SIGKILL, -signal.SIGKILL]
    assert list(tmp_path.glob("killed/checkpoints/checkpoint-*"))
    assert ended(shared(work, "sft", tmp_path / "killed", **often)) == [0, 0]
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_a_loss_that_is_not_finite_is_one_error_that_names_the_rows_of_both(work, tmp_path):
    import torch

    from bloomery.components.core.modelling import checkpoints

    network, tokenizer = checkpoints.load(work["sft"][2]["base_model"])
    with torch.no_grad():
        network.model.norm.weight[0] = torch.nan
    checkpoints.save(tmp_path / "broken", network, tokenizer)
    work["sft"][2]["base_model"] = tmp_path / "broken"
    assert ended(shared(work, "sft", tmp_path / "two", num_validations=0)) == [4, 4]
    error = processes._cause(tmp_path / "two", {0: 4, 1: 4})
    assert isinstance(error, DivergedError)
    assert "optimiser step 1;" in str(error) and "Its batch has 8 rows, with a loss that is not finite" in str(error)
    assert not (tmp_path / "two" / "model").exists()


def test_a_process_that_was_killed_is_named_and_not_what_the_others_met(tmp_path):
    (tmp_path / "error.0").write_bytes(pickle.dumps(RuntimeError("connection closed by peer")))
    error = processes._cause(tmp_path, {0: 1, 1: -signal.SIGKILL})
    assert isinstance(error, ServiceError) and "process 1 " in str(error) and "SIGKILL" in str(error)
    assert str(processes._cause(tmp_path, {0: 1})) == "connection closed by peer"


def test_as_many_as_accelerators_are_given_and_here(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.asked(sft) == 1
    monkeypatch.setenv("BLOOMERY_ACCELERATORS", "4")
    assert processes.asked(sft) == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes.asked(sft) == 1
    monkeypatch.setenv("BLOOMERY_PROCESSES", "3")
    assert processes.asked(sft) == 3
    monkeypatch.setenv("BLOOMERY_PROCESSES", "two")
    with pytest.raises(ConfigError, match="BLOOMERY_PROCESSES: found 'two'"):
        processes.asked(sft)


def test_the_step_starts_them_and_one_of_them_tells(work, tmp_path, monkeypatch):
    run, own, inputs = work["sft"]
    settings = {**TRAINING, **own, "batch_size": 4}
    journal = tmp_path / "journal.jsonl"
    for name, value in {"JOURNAL": journal, "STORE": tmp_path / "store", "PROCESSES": 2}.items():
        monkeypatch.setenv(f"BLOOMERY_{name}", str(value))
    run_step(run, "sft", settings, inputs, {"model": tmp_path / "model"})
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "progress" and "loss" in event["metrics"]]
    told = [event["event"] for event in events]
    assert steps == [1, 2, 3, 4] and (told.count("started"), told.count("finished")) == (1, 1)
    assert events[-1]["metrics"]["sft/chats"] == 32 and events[-1]["peak_bytes"] > 2e8
    assert digest(tmp_path) and not list(tmp_path.glob("store/*/*.checkpoints"))
    assert execute(run, "sft", settings, inputs, {"model": tmp_path / "again"})["cached"]
    monkeypatch.delenv("BLOOMERY_PROCESSES")  # one process alone learns something else
    assert not execute(run, "sft", settings, inputs, {"model": tmp_path / "alone"})["cached"]


WAITING = """
import os, signal, sys, time
from pathlib import Path
from bloomery.components.core.config import Config

def run(config: Config) -> dict:
    place = Path(os.environ["PLACE"])
    def stop(*_):
        (place / f"stopped{os.environ['RANK']}").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (place / f"began{os.environ['RANK']}").touch()
    time.sleep(60)
"""


def test_sigterm_reaches_all_and_ends_the_step(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    code = (
        "import waiting; from bloomery.components.core import processes; from bloomery.components.core.config import "
        "Config; processes.launch((waiting.run, 'waiting', Config(), {}, {}, {}), 2)"
    )
    environment = {**os.environ, "PLACE": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while process.poll() is None and len(list(tmp_path.glob("began*"))) < 2:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=25) == 128 + signal.SIGTERM
    assert sorted(file.name for file in tmp_path.glob("stopped*")) == ["stopped0", "stopped1"]
