"""What goes wrong quietly in a training is named, and what does not is left alone."""

import logging

import pytest
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.modelling import guards, literature
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.components.cpt.config import CptConfig
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

FALLING = [4.0, 3.9, 3.5, 3.6, 3.2, 3.0, 3.1, 2.8, 2.9, 2.7, 2.6, 2.7]
PAIRS = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}


def test_a_loss_that_rises_is_named_and_one_that_falls_or_is_noisy_is_not():
    assert guards.rising(FALLING) == ""
    assert guards.rising([2.0, 3.0] * 10) == ""  # its windows are all 2.5
    # The lowest window is 2.7, 2.6, 2.7, 2.9 and the last 4.0: 1.47 times as much; it usually changes by 0.2.
    told = guards.rising([*FALLING, 2.9, 3.2, 3.6, 4.0, 4.2, 4.2])
    assert told.startswith("the loss rises: 4 after 2.7")
    assert guards.rising([1.0] * 4 + [9.0] * 4) == ""  # too short to tell


def test_a_gradient_that_explodes_is_named_once_it_does_so_twice():
    norms = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.0]
    assert guards.exploding([*norms, 30.0]) == ""
    assert guards.exploding([*norms, 30.0, 40.0]).startswith("the gradient norm explodes: 40, where it was 1")


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3, 4, 5, 6], 0.0), ([1, 2, 3, 4] * 3, 5 / 9), ([7] * 11, 7 / 8), ([1, 2], 0.0)],
    # 9 grams of [1 2 3 4]x3, 4 different; 8 grams of 7s, one different
)
def test_repetition_is_the_share_of_4_grams_that_came_before(tokens, share):
    assert guards.repetition(tokens) == pytest.approx(share)


SETTINGS = {"epochs": 1, "max_length": 64}


@pytest.mark.parametrize(
    ("kind", "adapter", "size", "expected"),
    [
        (SftConfig, None, 10**9, 3.48e-4),  # 0.003239 - 0.0001395 ln(1e9) = 0.003239 - 0.002891
        (SftConfig, {}, 10**9, 3.48e-3),
        (SftConfig, {"kind": "prompt"}, 10**9, 0.3),
        (DpoConfig, None, 10**9, 3.48e-5),
        (SftConfig, None, 10**12, 2e-5),  # the line is far below zero
    ],
)
def test_the_highest_learning_rate_follows_from_size_method_and_adapter(kind, adapter, size, expected):
    config = kind(learning_rate=1, adapter=adapter, **SETTINGS)
    assert literature.most_learning_rate(config, size)[0] == pytest.approx(expected, 1e-2)


def test_what_the_literature_does_not_support_is_told_with_its_source():
    usual = SftConfig(learning_rate=2e-5, epochs=3, max_length=64, adapter={"rank": 16})
    assert literature.unusual(usual, 8 * 10**9) == []
    (told,) = literature.unusual(SftConfig(learning_rate=1e-3, **SETTINGS), 8 * 10**9)
    assert told.startswith("learning_rate 0.001 is above 5.8e-05: the rate of pre-training at this size")
    (told,) = literature.unusual(CptConfig(learning_rate=1e-4, epochs=5, max_length=64), 10**8)
    assert told.startswith("epochs 5 is above 4: repeated text") and "2305.16264" in told
    (told,) = literature.unusual(DpoConfig(learning_rate=1e-6, epochs=4, max_length=64), 10**9)
    assert "2310.16944" in told
    (told,) = literature.unusual(SftConfig(learning_rate=1e-3, adapter={"rank": 512}, **SETTINGS), 10**9)
    assert told.startswith("adapter.rank 512 is above 256")
    (told,) = literature.unusual(SftConfig(learning_rate=1e-9, **SETTINGS), 10**9)
    assert "so low that little is learnt" in told


@pytest.fixture
def learn(tiny_model, make_tasks, tmp_path, monkeypatch):
    """Fine-tune the tiny model with some settings; returns the folder of the new one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    artifact.seal(tiny_model, "model/1")
    tasks = make_tasks(TASK, [])

    def run(pairs=PAIRS, base=tiny_model, **settings):
        config = SftConfig(**{"batch_size": 4, "max_length": 64, "num_validations": 0, **settings})
        chats, target = write_chats(tmp_path / base.name / "c", pairs), tmp_path / base.name / "m"
        sft(config, chats=chats, tasks=tasks, base_model=base, model=target)
        return target

    return run


def test_a_rate_that_is_far_too_high_is_named_while_the_run_goes_on(learn, caplog):
    with caplog.at_level(logging.WARNING, "bloomery"):
        learn(learning_rate=100, epochs=20, warmup_fraction=0.9)
    told = [record.getMessage() for record in caplog.records]
    for named in ("the loss rises", "the gradient norm explodes"):
        (found,) = [text for text in told if named in text]
        assert found.startswith("at optimiser step ") and int(found.split()[3]) < 40


def test_answers_that_come_to_repeat_themselves_are_named(learn, caplog):
    told = learn(learning_rate=1e-2, epochs=40)  # what is untrained repeats itself from the start
    with caplog.at_level(logging.WARNING, "bloomery"):
        learn([(question, "ha" * 20) for question, _ in PAIRS], told, learning_rate=1e-2, epochs=10)
    assert any("answers repeat themselves" in record.getMessage() for record in caplog.records)


def test_a_training_that_goes_well_warns_of_nothing(learn, caplog):
    with caplog.at_level(logging.WARNING, "bloomery"):
        learn(learning_rate=1e-3, epochs=15)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (None, "8 of 20 trained tensors had no gradient in the first 8 optimiser steps"),
        ({"rank": 2}, "12 of 28 trained tensors had no gradient in the first 8 optimiser steps"),
    ],
    # Of two layers the three matrices of each network and the norm before them; LoRA has two of each matrix.
)
def test_what_no_gradient_reaches_is_named(learn, caplog, monkeypatch, adapter, told):
    from transformers.models.llama.modeling_llama import LlamaMLP

    whole = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: whole(self, hidden).detach())
    with caplog.at_level(logging.WARNING, "bloomery"):
        learn(learning_rate=1e-3, epochs=8, adapter=adapter)
    (found,) = [text for text in (record.getMessage() for record in caplog.records) if "no gradient" in text]
    assert found.startswith(told) and "layers.0.mlp.gate_proj" in found


def test_an_adapter_that_learns_from_zero_warns_of_nothing(learn, caplog):
    with caplog.at_level(logging.WARNING, "bloomery"):
        learn(learning_rate=1e-3, epochs=15, adapter={"rank": 2}, warmup_fraction=0.1)
    assert [record.getMessage() for record in caplog.records] == []


def test_the_first_row_is_shown_with_what_is_trained(learn, monkeypatch, tiny_model):
    shown = {}
    monkeypatch.setattr("bloomery.components.core.tracking.show", lambda name, value: shown.setdefault(name, value))
    learn(learning_rate=1e-3, epochs=1)
    assert shown["example"] == [("<|user|>say ab<|assistant|>", False), ("ab<|eos|>", True)]


def test_a_pair_is_shown_with_its_chosen_answer(tiny_model):
    from bloomery.components.core.modelling import checkpoints

    _, tokenizer = checkpoints.load(tiny_model)
    ids = {name: tokenizer(text)["input_ids"] for name, text in (("prompt", "ab"), ("chosen", "cd"), ("rejected", "x"))}
    row = {f"{name}_ids": value for name, value in ids.items()}
    assert guards.example(tokenizer, row) == [("ab", False), ("cd", True)]


def test_every_method_has_its_epochs():
    for config in (TrainingConfig, SftConfig, CptConfig, DpoConfig):
        assert config.METHOD in literature.MOST_EPOCHS
