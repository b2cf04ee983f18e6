"""Which weights are kept: those of the lowest loss, or those whose answers score highest."""

from types import SimpleNamespace

import pytest
import torch

from bloomery.components.core import artifact
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling.best import Best
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

LOSSES, SCORES = (1.0, 3.0, 2.0, 2.5), (0.5, 0.75, 0.75, 0.25)


def validated(best: Best, steps=range(1, 5)):
    """The weight that is kept of a model whose weight was the number of the step, and whether its training ended."""
    model, control = torch.nn.Linear(1, 1), SimpleNamespace(should_training_stop=False)
    callback = best.callback()
    for step in steps:
        model.weight.data.fill_(step)
        told = {"eval_loss": LOSSES[step - 1]}
        callback.on_evaluate(None, at(step), control, metrics=told, model=model)
    best.restore(model)
    return model.weight.item(), control.should_training_stop


def at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=4, log_history=[])


def scored(model) -> float:
    assert not model.training
    torch.rand(3)  # must leave no trace in the course of the training
    return SCORES[int(model.weight.item()) - 1]


def test_the_lowest_loss_or_the_highest_score_is_kept():
    assert validated(Best(None)) == (1, False)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    best = Best(None, scored)
    model = torch.nn.Linear(1, 1)
    torch.set_rng_state(before)
    model.weight.data.fill_(2)
    state = at(2)
    best._scored(model, state)
    assert state.log_history == [{"validation_score": 0.75, "step": 2}]
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert validated(Best(None, scored)) == (3, False)  # of 2 and 3, which score alike, the lower loss


def test_patience_counts_what_is_best_by():
    assert validated(Best(2))[1] and not validated(Best(2, scored))[1]


def test_one_that_goes_on_has_kept_the_same(tmp_path):
    first = Best(None, scored)
    validated(first, range(1, 3))
    first.save(tmp_path)
    second = Best(None, scored)
    second.load(tmp_path)
    assert second.kept.score == 0.75 and validated(second, range(3, 5)) == (3, False)


def test_sft_keeps_the_weights_that_answer_best(tiny_model, make_tasks, tmp_path, monkeypatch):
    from chats import write_chats

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    artifact.seal(tiny_model, "model/1")
    pairs = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]
    task = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "chrf"}, "max_new_tokens": 4}}
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in pairs]
    settings = {"learning_rate": 1e-2, "epochs": 24, "batch_size": 4, "max_length": 64, "num_validations": 4}
    config = SftConfig.model_validate({**settings, "best_by": "score", "adapter": {"rank": 8}})
    chats, tasks = write_chats(tmp_path / "c", pairs), make_tasks(task, rows)
    metrics = sft(config, chats=chats, tasks=tasks, base_model=tiny_model, model=tmp_path / "m")
    from bloomery.components.core.scoring.tasks import Tasks

    answers = Generator.load(tmp_path / "m").generate([chat(prompt) for prompt, _ in pairs], max_new_tokens=4)
    known = Tasks(tasks)
    found = [known.verify("echo", text, right)[0] for (text,), (_, right) in zip(answers, pairs, strict=True)]
    assert metrics["sft/validation_score"] == pytest.approx(sum(found) / 4) and metrics["sft/scoring_seconds"] >= 0
    unasked = make_tasks(task, [], "unasked")
    with pytest.raises(DataError, match=r"sft\.best_by: score, and no task has validation questions"):
        sft(config, chats=chats, tasks=unasked, base_model=tiny_model, model=tmp_path / "n")


def test_a_score_needs_validations():
    with pytest.raises(ValueError, match="best_by: score needs validations, and keep: best"):
        SftConfig(learning_rate=1e-3, epochs=1, max_length=64, best_by="score", keep="last")


SETTINGS = {"learning_rate": 1, "epochs": 1, "max_length": 8}


def test_patience_counts_validations_and_needs_some():
    with pytest.raises(ConfigError, match="patience: found 3, which counts validations, and num_validations is 0"):
        parse(SftConfig, {**SETTINGS, "patience": 3, "num_validations": 0}, where="sft")
