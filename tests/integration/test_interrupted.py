"""A training that is killed goes on from its last checkpoint, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from chats import preference_row, write_chats

from bloomery.components.core import artifact
from bloomery.components.core.modelling import checkpoints, likelihood, resuming
from bloomery.components.core.records import Document, Preference, content_id
from bloomery.components.core.step import execute, run_step
from bloomery.components.cpt.step import run as cpt
from bloomery.components.distillation.step import run as distillation
from bloomery.components.dpo import kept_likelihoods
from bloomery.components.dpo.step import run as dpo
from bloomery.components.grpo.step import run as grpo
from bloomery.components.reward_model.step import run as reward_model
from bloomery.components.sft.step import run as sft

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
WORDS = ["tea", "coffee", "차", "커피", "lamp", "bag", "shoe", "plant"]
TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "max_length": 64, "checkpoint": {"every_minutes": 1e-4}}


@pytest.fixture
def base(tiny_model):
    artifact.seal(tiny_model, "model/1")
    return tiny_model


@pytest.fixture
def wide(base, tmp_path):
    """A model of the same tokens and another width."""
    from transformers import LlamaForCausalLM

    network, tokenizer = checkpoints.load(base)
    network.config.update({"hidden_size": 48, "num_hidden_layers": 3})
    checkpoints.save(tmp_path / "wide", LlamaForCausalLM(network.config), tokenizer)
    return tmp_path / "wide"


@pytest.fixture
def work(base, wide, make_tasks, tmp_path):
    """By step: its `run`, its settings, and its inputs."""
    import trl.trainer.sft_trainer  # noqa: F401  once, and not in each process

    pairs = [(f"say {a} and {b}", f"{a} {b}") for a in WORDS for b in WORDS]
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in pairs[:4]]
    preferences = [preference_row(prompt, answer, answer[::-1]) for prompt, answer in pairs]
    artifact.write_rows(tmp_path / "pairs", "preference/3", Preference.table(preferences))
    facts = {"source": "s:f#1", "language": "en", "time": "", "quality": None}
    documents = [
        {**facts, "id": content_id(prompt), "text": f"{prompt}: {answer}. " * 4, "general": index % 3 == 0}
        for index, (prompt, answer) in enumerate(pairs)
    ]
    artifact.write_rows(tmp_path / "documents", "document/2", Document.table(documents))
    letters = {"echo": {**TASK["echo"], "verifier": {"kind": "regex"}}}
    asked = [{"task": "echo", "split": "train", "prompt": p, "reference": "(?s)[a-z].*"} for p, _ in pairs[:20]]
    rewarded = {"tasks": make_tasks(letters, asked, "letters_tasks"), "base_model": base}
    sampled = {**TRAINING, "batch_size": 8, "gradient_accumulation_steps": 2, "epochs": 2}
    chats = {"chats": write_chats(tmp_path / "chats", pairs), "tasks": make_tasks(TASK, rows), "base_model": base}
    lora = {"kind": "lora", "rank": 4, "dropout": 0.1}
    taught = {"teacher": {"stage": "wide"}, "on_policy_share": 0.5, "max_new_tokens": 4, "features": 1.0}
    scored = {"best_by": "score", "mixing": {"temperature": 2}, "num_validations": 6}
    return {
        "sft": (sft, {**TRAINING, "epochs": 3, "num_validations": 6}, chats),
        "sft with muon": (sft, {**TRAINING, "epochs": 3, "optimizer": "muon", "num_validations": 0}, chats),
        "sft of an adapter": (sft, {**TRAINING, **scored, "epochs": 3, "adapter": lora}, chats),
        "sft of a soft prompt": (
            sft,
            {**TRAINING, "epochs": 2, "num_validations": 3, "adapter": {"kind": "p_tuning", "tokens": 4}},
            chats,
        ),
        "dpo": (dpo, {**TRAINING, "epochs": 2}, {"preferences": tmp_path / "pairs", "base_model": base}),
        "kto": (
            dpo,
            {**TRAINING, "epochs": 1, "loss": "kto"},
            {"preferences": tmp_path / "pairs", "base_model": base},
        ),
        "distillation": (
            distillation,
            {**TRAINING, "epochs": 2, "num_validations": 3, **taught},
            {**chats, "teacher": wide},
        ),
        "grpo": (grpo, sampled, rewarded),
        "rloo": (grpo, {**sampled, "algorithm": "rloo", "adapter": lora}, rewarded),
        "reward model": (
            reward_model,
            {**TRAINING, "epochs": 2},
            {"preferences": tmp_path / "pairs", "base_model": base},
        ),
        "cpt": (cpt, {**TRAINING, "epochs": 1}, {"documents": tmp_path / "documents", "base_model": base}),
    }


def started(work, name, target: Path, store: Path):
    """The step in a process of its own."""

    def run():
        os.environ["BLOOMERY_STORE"] = str(store)
        kind, settings, inputs = work[name]
        port = "reward_model" if kind is reward_model else "model"
        run_step(kind, name, settings, inputs, {port: target / "model"}, None)

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def finished(work, name, target: Path, store: Path):
    """(digest of the model, result) of the step, run to its end."""
    process = started(work, name, target, store)
    process.join()
    assert process.exitcode == 0
    (result,) = store.glob("*/*/result.json")
    return artifact.read_manifest(target / "model").digest, json.loads(result.read_text())


def untimed(result: dict) -> list[dict]:
    """The history of a result without what it took."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "per_second"))}
        for entry in result["history"]
    ]


def newest(store: Path) -> int:
    """The optimiser step of the newest checkpoint of a training that is not finished; 0 if there is none."""
    found = store.glob("*/*.checkpoints/checkpoint-*")
    return max((int(folder.name.rpartition("-")[2]) for folder in found), default=0)


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "sft with muon",
        "sft of an adapter",
        "sft of a soft prompt",
        "dpo",
        "distillation",
        "grpo",
        "rloo",
        "reward model",
        "cpt",
    ],
)
def test_killed_at_random_points_it_ends_with_the_same_digest(work, name, tmp_path):
    began = time.monotonic()
    expected, told = finished(work, name, tmp_path / "whole", tmp_path / "store")
    seconds = time.monotonic() - began
    chance, seen, kills, wanted = random.Random(name), 0, 0, {"sft": 10, "dpo": 10}.get(name, 2)
    for _ in range(3 * wanted):
        process = started(work, name, tmp_path / "killed", tmp_path / "other")
        while process.is_alive() and newest(tmp_path / "other") <= seen:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05) * seconds)
        process.kill()
        process.join()
        seen = newest(tmp_path / "other")
        kills += process.exitcode == -signal.SIGKILL and seen > 0
        if kills == wanted:
            break
        if process.exitcode == 0:  # it was over before the kill: from the beginning, to be killed further
            assert artifact.read_manifest(tmp_path / "killed" / "model").digest == expected
            for folder in ("killed", "other"):
                shutil.rmtree(tmp_path / folder)
    assert kills == wanted
    digest, result = finished(work, name, tmp_path / "killed", tmp_path / "other")
    assert digest == expected
    exact = ("trained_tokens", "best_step", "validation_loss", "validation_score", "_after")
    same = {key for key in told["metrics"] if key.endswith(exact)}
    assert {key: result["metrics"][key] for key in same} == {key: told["metrics"][key] for key in same}
    assert [entry["step"] for entry in result["history"]] == [entry["step"] for entry in told["history"]]
    assert not list(tmp_path.glob("other/*/*.checkpoints"))


def test_kto_whose_rows_keep_their_order_goes_on_in_it(work, tmp_path):
    expected, _ = finished(work, "kto", tmp_path / "whole", tmp_path / "store")
    process = started(work, "kto", tmp_path / "killed", tmp_path / "other")
    while process.is_alive() and not list(tmp_path.glob("other/*/*.checkpoints/checkpoint-*")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert list(tmp_path.glob("other/*/*.checkpoints/checkpoint-*"))
    assert finished(work, "kto", tmp_path / "killed", tmp_path / "other")[0] == expected


@pytest.mark.parametrize(
    ("name", "number", "at_batch", "seconds"),
    [
        ("dpo", signal.SIGKILL, 20, 0.0),  # in the middle of the reference, which is written after each batch
        ("kto", signal.SIGTERM, 60, 60.0),  # in the middle of the answers of others, which is written as the step ends
    ],
)
def test_killed_while_it_reads_the_reference_it_finds_the_other_likelihoods_alone(
    work, name, number, at_batch, seconds, tmp_path, monkeypatch
):
    kind, settings, inputs = work[name]
    work[name] = (kind, {**settings, "epochs": 0.25}, inputs)
    padded, journal = likelihood._padded, tmp_path / "batches"

    def run(store: str, kills: bool):
        """(exit code, rows of each batch whose likelihoods the step computed)."""
        journal.write_text("")

        def noted(rows, scored, batch):
            with journal.open("a") as stream:
                stream.write(f"{len(batch)}\n")
            if kills and len(journal.read_text().splitlines()) == at_batch:
                os.kill(os.getpid(), number)
            return padded(rows, scored, batch)

        monkeypatch.setattr(likelihood, "_padded", noted)
        process = started(work, name, tmp_path / store / "target", tmp_path / store)
        process.join()
        return process.exitcode, [int(line) for line in journal.read_text().splitlines()]

    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 64)
    monkeypatch.setattr(kept_likelihoods, "SECONDS", seconds)
    _, whole = run("store", kills=False)
    code, killed = run("other", kills=True)
    assert code == (-number if number == signal.SIGKILL else 128 + number) and len(killed) == at_batch < len(whole)
    found = sum(int(folder.name.rpartition("-")[2]) for folder in tmp_path.glob("other/*/*.checkpoints/*-*"))
    assert found == sum(killed[:-1])
    code, resumed = run("other", kills=False)
    assert code == 0 and resumed == whole[at_batch - 1 :]
    digests = [artifact.read_manifest(tmp_path / store / "target" / "model").digest for store in ("store", "other")]
    assert digests[0] == digests[1] and not list(tmp_path.glob("other/*/*.checkpoints"))


def test_sigterm_writes_a_checkpoint_and_ends(work, tmp_path, monkeypatch):
    kind, settings, inputs = work["sft"]
    work["sft"] = (kind, {**settings, "epochs": 12, "checkpoint": {"every_minutes": 60}}, inputs)
    expected, told = finished(work, "sft", tmp_path / "whole", tmp_path / "store")
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    monkeypatch.setenv("BLOOMERY_JOURNAL", str(journal))
    process = started(work, "sft", tmp_path / "stopped", tmp_path / "other")
    while '"progress"' not in journal.read_text():
        time.sleep(0.01)
    process.terminate()
    process.join(timeout=25)
    assert process.exitcode == 128 + signal.SIGTERM
    (left,) = tmp_path.glob("other/*/*.checkpoints/checkpoint-*")
    assert int(left.name.split("-")[1]) < told["history"][-1]["num_steps"]
    assert finished(work, "sft", tmp_path / "stopped", tmp_path / "other")[0] == expected


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # Of 64 rows an epoch is one step; of 20 prompts and 8 answers a step, three.
        ("sft of an adapter", {"epochs": 3, "mixing": None, "best_by": "validation_loss", "num_validations": 0}),
        ("rloo", {"epochs": 1}),
    ],
)
def test_a_step_that_takes_longer_than_sigterm_leaves_is_left_and_done_again(
    work, name, settings, tmp_path, monkeypatch, capfd
):
    kind, given, inputs = work[name]
    large_steps = {"batch_size": 1, "gradient_accumulation_steps": 64, "checkpoint": {"every_minutes": 60}}
    work[name] = (kind, {**given, **large_steps, **settings}, inputs)
    expected, told = finished(work, name, tmp_path / "whole", tmp_path / "store")
    now = resuming.Resuming.now

    def now_and_stop(self):
        found = now(self)
        if self.trainer.state.global_step == 1 and not self.is_stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(resuming.PATIENCE / 2)
            os.kill(os.getpid(), signal.SIGTERM)  # a second time, which puts nothing off
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= resuming.PATIENCE / 2
        return found

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "PATIENCE", 0.02)
        patch.setattr(resuming.Resuming, "now", now_and_stop)
        process = started(work, name, tmp_path / "stopped", tmp_path / "other")
    process.join(timeout=25)
    assert process.exitcode == 128 + signal.SIGTERM and "was left after 0.02 s" in capfd.readouterr().err
    (left,) = tmp_path.glob("other/*/*.checkpoints/checkpoint-*")
    assert left.name == "checkpoint-1" and told["history"][-1]["num_steps"] == 3
    assert finished(work, name, tmp_path / "stopped", tmp_path / "other")[0] == expected


@pytest.mark.parametrize(
    ("name", "settings", "is_on", "patience"),
    [
        ("sft of an adapter", {}, True, 1e-3),  # scored by answers
        ("sft", {"keep": "last", "patience": 1, "learning_rate": 0.3, "epochs": 6}, True, 1e-3),  # it ends the training
        ("distillation", {}, True, 60),
        ("sft of a soft prompt", {}, False, 60),
    ],
)
def test_a_validation_is_ended_within_what_sigterm_leaves_or_done_again(
    work, name, settings, is_on, patience, tmp_path, monkeypatch, capfd
):
    kind, given, inputs = work[name]
    work[name] = (kind, {**given, "checkpoint": {"every_minutes": 60}, **settings}, inputs)
    expected, told = finished(work, name, tmp_path / "whole", tmp_path / "store")
    validated = [entry["step"] for entry in told["history"] if "eval_loss" in entry]
    assert ("patience" in settings) == (validated[-1] < told["history"][-1]["num_steps"])
    step = validated[-1] if "patience" in settings else validated[0]
    now = resuming.Resuming.now

    def now_and_stop(self):
        """SIGTERM comes as the validation after `step` begins, or in that step."""
        found = now(self)
        if (self.is_validated, self.trainer.state.global_step) == (not is_on, step - (not is_on)):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "PATIENCE", patience)
        patch.setattr(resuming.Resuming, "now", now_and_stop)
        process = started(work, name, tmp_path / "stopped", tmp_path / "other")
    process.join(timeout=25)
    is_left = f"the validation after optimiser step {step} was left" in capfd.readouterr().err
    assert process.exitcode == 128 + signal.SIGTERM and is_left == (patience < 60)
    (checkpoint,) = tmp_path.glob("other/*/*.checkpoints/checkpoint-*")
    is_done = json.loads((checkpoint / resuming.COUNTERS).read_text())["is_validated"]
    assert checkpoint.name == f"checkpoint-{step}" and is_done == (is_on and not is_left)
    digest, result = finished(work, name, tmp_path / "stopped", tmp_path / "other")
    assert digest == expected and untimed(result) == untimed(told)


def test_a_training_whose_result_is_kept_nowhere_keeps_no_checkpoint(work, tmp_path, monkeypatch):
    monkeypatch.delenv("BLOOMERY_STORE", raising=False)
    kind, settings, inputs = work["sft"]
    told = execute(kind, "sft", {**settings, "epochs": 1, "num_validations": 0}, inputs, {"model": tmp_path / "m"})
    assert told["history"] and artifact.read_manifest(tmp_path / "m", "model/1")


def test_other_settings_do_not_find_the_checkpoint(work, tmp_path):
    kind, settings, inputs = work["sft"]
    process = started(work, "sft", tmp_path / "killed", tmp_path / "store")
    while process.is_alive() and not list(tmp_path.glob("store/*/*.checkpoints/checkpoint-*")):
        time.sleep(0.01)
    process.kill()
    process.join()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
        other = execute(kind, "sft", {**settings, "learning_rate": 2e-3}, inputs, {"model": tmp_path / "m"})
    assert other["history"][0]["step"] == 1
    assert list(tmp_path.glob("store/*/*.checkpoints/checkpoint-*"))


def test_other_machines_go_on_from_an_object_store(work, object_store, tmp_path, monkeypatch):
    """Each attempt has a disk of its own; what it finds it finds in the store alone."""
    kind, settings, inputs = work["sft"]
    work["sft"] = (kind, {**settings, "epochs": 1, "num_validations": 2}, inputs)
    expected, _ = finished(work, "sft", tmp_path / "whole", tmp_path / "store")

    def attempt(name: str):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        (tmp_path / name).mkdir()
        return started(work, "sft", tmp_path / name, object_store.uri)

    chance, killed = random.Random(3), []
    for number in range(3):
        process, before = attempt(f"machine{number}"), whole_checkpoints(object_store)
        while process.is_alive() and whole_checkpoints(object_store) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        killed.append(process.exitcode)
    assert killed == [-signal.SIGKILL] * 3
    process = attempt("last")
    process.join()
    assert process.exitcode == 0
    assert artifact.read_manifest(tmp_path / "last" / "model").digest == expected
    fetched = [request for request in object_store.requests if re.match(r"GET .*/checkpoint-\d+/\w+/content/", request)]
    assert fetched and not [name for name in object_store.objects() if "checkpoint" in name]
    assert not list((tmp_path / "last").glob("bloomery-*"))


def test_training_goes_on_while_a_checkpoint_is_copied_and_ends_when_it_has_been(
    work, object_store, tmp_path, monkeypatch
):
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    monkeypatch.setenv("BLOOMERY_JOURNAL", str(journal))
    object_store.fail("stuck", r"PUT .*/checkpoint-\d+/\w+/content/")
    process = started(work, "sft", tmp_path / "machine", object_store.uri)
    assert object_store.stuck.wait(60)
    while process.is_alive() and '"step": 48' not in journal.read_text():  # the last of three epochs of 64 chats
        time.sleep(0.01)
    process.join(0.2)
    assert process.is_alive()
    written = {found[0] for request in object_store.requests if (found := re.search(r"checkpoint-\d+", request))}
    assert len(written) == 1 and not whole_checkpoints(object_store)
    object_store.release()
    process.join()
    assert process.exitcode == 0 and whole_checkpoints(object_store) == 1
    assert not [name for name in object_store.objects() if "checkpoint" in name]


def whole_checkpoints(server) -> int:
    """How many were written so far."""
    return len([request for request in server.requests if re.match(r"PUT .*/checkpoint-\d+/whole.json", request)])
