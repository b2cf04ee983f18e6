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

from bloomery.components.core import artifact, processes, trees, unfinished, worker
from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError, DivergedError, ServiceError
from bloomery.components.core.modelling import checkpoints, guards, likelihood, training
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.components.core.records import Document, Preference, content_id
from bloomery.components.core.step import config_class, execute, perform, run_step
from bloomery.components.cpt.step import run as cpt
from bloomery.components.dpo import kept_likelihoods
from bloomery.components.dpo.step import run as dpo
from bloomery.components.grpo.step import run as grpo
from bloomery.components.reward_model.step import run as reward_model
from bloomery.components.sft.step import run as sft

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
WORDS = ["tea", "coffee", "hat", "lamp", "bag", "shoe"]
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}


@pytest.fixture
def work(tiny_model, make_tasks, tmp_path, monkeypatch):
    """By name: a step's `run`, its settings beside the batch, and its inputs. Rows divide by 8."""
    monkeypatch.setattr(guards, "NUM_ANSWERED", 4)  # of each token all weights are sent around
    for module in ("sft_trainer", "dpo_trainer", "grpo_trainer", "reward_trainer", "rloo_trainer"):
        importlib.import_module(f"trl.trainer.{module}")  # once, and not in every fork
    artifact.seal(tiny_model, "model/1")
    pairs = [(f"say {a} and {b}", f"{a} {b}") for a in WORDS for b in WORDS][:32]
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in pairs[:5]]
    rows += [{**row, "split": "unlabelled"} for row in rows[:4]]
    preferences = [preference_row(prompt, answer, answer[::-1]) for prompt, answer in pairs]
    artifact.write_rows(tmp_path / "pairs", "preference/3", Preference.table(preferences))
    facts = {"source": "s:f#1", "language": "en", "time": "", "quality": None, "general": False}
    texts = [f"{prompt}: {answer}. ".ljust(63, "x") for prompt, answer in pairs]  # 64 tokens with the end
    documents = [{**facts, "id": content_id(text), "text": text} for text in texts]
    artifact.write_rows(tmp_path / "documents", "document/2", Document.table(documents))
    chats = {"chats": write_chats(tmp_path / "chats", pairs), "tasks": make_tasks(TASK, rows), "base_model": tiny_model}
    preferred = {"preferences": tmp_path / "pairs", "base_model": tiny_model}
    read = {"documents": tmp_path / "documents", "base_model": tiny_model}
    asked = {name: chats[name] for name in ("tasks", "base_model")}
    rewarded = {"num_generations": 4, "rewards": {"format": 1.0, "format_pattern": ".*[a-z].*"}, "epochs": 3}
    return {
        "sft": (sft, {"num_validations": 2}, chats),
        "packed, with prompts": (sft, {"packing": True, "prompt_loss_weight": 0.3, "num_validations": 0}, chats),
        "dpo": (dpo, {"validation_share": 1e-9}, preferred),
        "reward model": (reward_model, {"validation_share": 1e-9}, preferred),
        "cpt": (cpt, {"validation_share": 1e-9, "replay_share": 0.0}, read),
        "grpo": (grpo, rewarded, asked),
        "rloo": (grpo, {**rewarded, "algorithm": "rloo"}, asked),
    }


def shared(work, name, folder: Path, *, sharding: str = "none", **settings) -> list:
    """The step in two forks, which the elastic launcher would start; their exit codes are awaited by `ended`."""
    run, own, inputs = work[name]
    config = parse(config_class(run), {**TRAINING, **own, "batch_size": 4, **settings}, where=name)
    port = "reward_model" if run is reward_model else "model"
    folder.mkdir(exist_ok=True)
    asked = (run, name, config, inputs, {port: folder / "model"}, {})
    (folder / processes.WORK).write_bytes(pickle.dumps((asked, unfinished.Place(folder / "checkpoints"))))
    return forked(lambda rank: worker.main(folder), sharding)


def forked(work, sharding: str) -> list:
    """Two processes that train together, each of which calls `work` with its rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def begin(rank):
        os.environ.update({**address, processes.SHARDING: sharding, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        work(rank)

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


def assert_alike(found: Path, expected: Path) -> None:
    """That a folder has the files of the other, and their weights but for the rounding of two optimiser steps, which
    turns a number whose gradient is nothing but rounding by 2 x 1e-3 at most."""
    from safetensors.torch import load_file

    names = sorted(file.name for file in expected.iterdir())
    assert sorted(file.name for file in found.iterdir()) == names
    (weights,) = [name for name in names if name.endswith(".safetensors")]
    ours, theirs = load_file(found / weights), load_file(expected / weights)
    assert {name: (own.shape, own.dtype) for name, own in ours.items()} == {
        name: (own.shape, own.dtype) for name, own in theirs.items()
    }
    apart = [float((own - theirs[name]).abs().mean()) for name, own in ours.items()]
    assert max(apart) < 1e-6


SHARDED = ("sft", "dpo", "cpt", "grpo")
"""Whose weights are shared out, too: with accumulation, a loss of its own, an adapter, and answers of different length
in each process."""


@pytest.mark.parametrize("name", ["sft", "packed, with prompts", "dpo", "reward model", "cpt", "grpo", "rloo"])
def test_losses_are_those_of_one_process_with_twice_the_batch(work, name, tmp_path):
    accumulated = {"gradient_accumulation_steps": 2}
    more = {"sft": accumulated, "grpo": accumulated, "cpt": {"adapter": {"rank": 4}}}.get(name, {})
    one = alone(work, name, tmp_path / "one", batch_size=8, **more)
    told = ("loss", "grad_norm", "learning_rate", *(["num_tokens"] if "num_tokens" in one["history"][0] else []))
    assert len(losses(one, *told)) > 1
    for sharding in ("none", "full") if name in SHARDED else ("none",):
        folder = tmp_path / sharding
        assert ended(shared(work, name, folder, sharding=sharding, **more)) == [0, 0]
        two = pickle.loads((folder / processes.RESULT).read_bytes())
        for found, expected in zip(losses(two, *told), losses(one, *told), strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert losses(two, "eval_loss") == [pytest.approx(loss, rel=1e-5) for loss in losses(one, "eval_loss")]
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-5)
        assert_alike(folder / "model", tmp_path / "one" / "model")


def digest(folder: Path) -> str:
    return artifact.read_manifest(folder / "model").digest


LORA = {"adapter": {"kind": "lora", "rank": 4, "dropout": 0.1}, "num_validations": 0}
SCORED = {"optimizer": "radam", "best_by": "score", "best_questions": 2, "num_validations": 2}


@pytest.mark.parametrize(("sharding", "settings"), [("none", LORA), ("full", SCORED)], ids=["ddp", "fsdp"])
def test_killed_it_goes_on_from_a_checkpoint_to_the_same_digest(work, tmp_path, sharding, settings):
    often = {"checkpoint": {"every_minutes": 1e-4}, "sharding": sharding, **settings}
    assert ended(shared(work, "sft", tmp_path / "whole", **often)) == [0, 0]
    started = shared(work, "sft", tmp_path / "killed", **often)
    while started[0].is_alive() and not list(tmp_path.glob("killed/checkpoints/checkpoint-*")):
        time.sleep(0.01)
    for process in started:
        process.kill()
    assert ended(started) == [-signal.SIGKILL, -signal.SIGKILL]
    (checkpoint,) = tmp_path.glob("killed/checkpoints/checkpoint-*")
    files = [(file.name, file.stat().st_size) for file in checkpoint.glob("parts/*.distcp")]
    if sharding == "full":  # each process has written its half, and the first what both have
        assert [name for name, _ in sorted(files)] == ["__0_0.distcp", "__1_0.distcp"]
        assert min(size for _, size in files) > 0.7 * max(size for _, size in files)
    assert ended(shared(work, "sft", tmp_path / "killed", **often)) == [0, 0]
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def on_two_machines(work, folder: Path, uri: str) -> list:
    """sft in two forks that share nothing but what is kept at `uri`, as the first processes of two machines do."""
    run, own, inputs = work["sft"]
    often = {"checkpoint": {"every_minutes": 1e-4}, "num_validations": 0, "batch_size": 4}
    config = parse(config_class(run), {**TRAINING, **own, **often}, where="sft")

    def machine(rank: int) -> None:
        os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PET_NNODES": "2", "PET_NODE_RANK": str(rank)})
        with unfinished.kept_at(uri):
            perform(run, "sft", config, inputs, {"model": folder / f"{rank}" / "model"}, {})

    return forked(machine, "full")


def test_two_machines_go_on_from_the_parts_that_both_have_kept(work, tmp_path, object_store):
    whole, killed = (f"{object_store.uri}/sft/{name}.checkpoints" for name in ("whole", "killed"))
    assert ended(on_two_machines(work, tmp_path / "whole", whole)) == [0, 0]
    started = on_two_machines(work, tmp_path / "killed", killed)
    while started[0].is_alive() and all(unfinished.OTHER in name for name in trees.names(killed)):
        time.sleep(0.01)
    for process in started:
        process.kill()
    assert ended(started) == [-signal.SIGKILL, -signal.SIGKILL]
    kept = {Path(name).stem for name in object_store.objects() if name.endswith(".distcp")}
    assert kept == {"__0_0", "__1_0"}  # the first machine has written its part, and the second its own
    assert ended(on_two_machines(work, tmp_path / "killed", killed)) == [0, 0]
    assert digest(tmp_path / "killed" / "0") == digest(tmp_path / "whole" / "0")


PER_LAYER = 4 * (4 * (32 + 32) + 3 * (32 + 64))
"""Numbers of a LoRA of rank 4 on a layer's seven matrices."""


@pytest.mark.parametrize(
    ("settings", "adapter"),
    [({"gradient_checkpointing": True}, 0), ({"adapter": LORA["adapter"]}, 2 * PER_LAYER)],
    ids=["full", "lora"],
)
def test_each_of_two_holds_half_of_weights_gradients_and_moments(work, tmp_path, settings, adapter):
    config = parse(TrainingConfig, {**TRAINING, **settings, "batch_size": 4}, where="training")
    rows = [{"input_ids": [5 + (row + at) % 50 for at in range(9)]} for row in range(8)]

    def work_of(rank):
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        def numbers(weights):
            return [sum(own.numel() for own in weights), sum(own.to_local().numel() for own in weights)]

        class Counted(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **_):
                self.held = {"weights": numbers([*model.parameters()])}
                learnt = [weight for weight in model.parameters() if weight.requires_grad]
                self.held |= {"learnt": numbers(learnt), "gradients": numbers([weight.grad for weight in learnt])}

            def on_step_end(self, args, state, control, optimizer=None, **_):
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.held[moment] = numbers([states[moment] for states in optimizer.state.values()])
                (tmp_path / f"held{rank}").write_text(json.dumps(self.held))

        worker._take_device()
        network, tokenizer = training.load(config, work["sft"][2]["base_model"])
        kind, more = (SFTTrainer, SFTConfig), {"dataset_kwargs": {"skip_prepare_dataset": True}}
        training.train(config, kind, network, tokenizer, Dataset.from_list(rows), callbacks=[Counted()], **more)

    assert ended(forked(work_of, "full")) == [0, 0]
    network, _ = training.load(config, work["sft"][2]["base_model"])
    for rank in range(2):
        held = json.loads((tmp_path / f"held{rank}").read_text())
        assert held.pop("weights") == [network.num_parameters() + adapter, (network.num_parameters() + adapter) / 2]
        learnt = adapter or network.num_parameters()
        assert held == dict.fromkeys(("learnt", "gradients", "exp_avg", "exp_avg_sq"), [learnt, learnt / 2])


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_loss_that_is_not_finite_is_one_error_that_names_the_rows_of_both(work, tmp_path, sharding):
    import torch

    from bloomery.components.core.modelling import checkpoints

    network, tokenizer = checkpoints.load(work["sft"][2]["base_model"])
    with torch.no_grad():
        network.model.norm.weight.fill_(3e38)  # finite, and what it is multiplied with is not
    checkpoints.save(tmp_path / "broken", network, tokenizer)
    work["sft"][2]["base_model"] = tmp_path / "broken"
    assert ended(shared(work, "sft", tmp_path / "two", sharding=sharding, num_validations=0)) == [4, 4]
    error = processes._cause(tmp_path / "two", {0: 4, 1: 4})
    assert isinstance(error, DivergedError)
    assert "optimiser step 1;" in str(error) and "Its batch has 8 rows, with a loss that is not finite" in str(error)
    assert not (tmp_path / "two" / "model").exists()


def test_what_wants_whole_weights_is_refused_where_they_are_shared_out(monkeypatch):
    for settings, told in (
        ({"optimizer": "muon"}, "optimizer: found muon, expected adamw or radam"),
        ({"adapter": {"kind": "dora"}}, "adapter.kind: found dora, expected lora or rslora, or no adapter"),
        ({"keep_zeros": True}, "keep_zeros: found true, expected false"),
    ):
        config = parse(TrainingConfig, {**TRAINING, **settings}, where="training")
        assert config.unshardable() == told
    for name, value in {"WORLD_SIZE": "2", processes.SHARDING: "full"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="keep_zeros: found true.*BLOOMERY_SHARDING: full"):
        training.train(config, (object, object), None, None, [])
    monkeypatch.setenv(processes.SHARDING, "half")
    with pytest.raises(ConfigError, match="BLOOMERY_SHARDING: found 'half', expected none or full"):
        training.train(config, (object, object), None, None, [])


def test_each_of_two_finds_half_of_the_references_likelihoods_and_has_them_all(tiny_model, tmp_path, monkeypatch):
    rows = [[3 + at % 5, *range(4, 6 + at)] for at in range(8)]
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)  # each row is a batch
    model = checkpoints.load(tiny_model)[0]
    expected = [total for total, _ in likelihood.log_likelihoods(model, rows)]

    def work(rank):
        asked = []
        scored = Lazily(lambda at: asked.append(at) or [True] * len(rows[at]), len(rows))
        with unfinished.lying_in(unfinished.Place(tmp_path / "place")):
            found = kept_likelihoods.nats(model, rows, scored, "reference")
        (tmp_path / f"{rank}.json").write_text(json.dumps([asked, found]))

    assert ended(forked(work, "none")) == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [
        [[0, 2, 4, 6], expected],
        [[1, 3, 5, 7], expected],
    ]
    assert {folder.name for folder in (tmp_path / "place").iterdir()} == {"reference_0-4", "reference_1-4"}
    assert ended(forked(work, "none")) == [0, 0]  # again, and none is found anew
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[[], expected]] * 2


def test_a_process_that_was_killed_is_named_and_not_what_the_others_met(tmp_path):
    (tmp_path / "error.0").write_bytes(pickle.dumps(RuntimeError("connection closed by peer")))
    error = processes._cause(tmp_path, {0: 1, 1: -signal.SIGKILL})
    assert isinstance(error, ServiceError) and "process 1 " in str(error) and "SIGKILL" in str(error)
    assert str(processes._cause(tmp_path, {0: 1})) == "connection closed by peer"


def test_one_process_that_was_to_share_out_its_weights_says_that_it_holds_them_all(monkeypatch, caplog):
    assert not processes.is_sharded(2)
    monkeypatch.setenv("BLOOMERY_SHARDING", "full")
    assert processes.is_sharded(2) and not processes.is_sharded(1)
    monkeypatch.setenv("BLOOMERY_PROCESSES", "2")
    assert processes.asked(sft) == 2 and not caplog.messages
    monkeypatch.setenv("BLOOMERY_PROCESSES", "1")
    assert processes.asked(sft) == 1
    assert caplog.messages == ["BLOOMERY_SHARDING: full, and one process trains: it holds all weights"]


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
        time.sleep(1)
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
    for _ in range(3):  # none of which has it no longer wait for them
        process.terminate()
        time.sleep(0.05)
    assert process.wait(timeout=25) == 128 + signal.SIGTERM
    assert sorted(file.name for file in tmp_path.glob("stopped*")) == ["stopped0", "stopped1"]
