"""How often each task is drawn, and which rows an epoch takes."""

from types import SimpleNamespace

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import CORRECTED, chat
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.batches import grouped_by_length
from bloomery.components.core.modelling.mixtures import ALWAYS, MixingConfig, Mixture, apportioned, shares
from bloomery.components.core.records import Chat
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1}, [0.9, 0.1]),
        ({"temperature": 2}, [0.75, 0.25]),  # 3 : 1
        ({"temperature": 1, "limit": 4}, [0.8, 0.2]),
        ({"temperature": 2, "limit": 4}, [2 / 3, 1 / 3]),
    ],
)
def test_shares_are_those_of_the_paper(settings, expected):
    assert shares([9, 1], MixingConfig(**settings)) == pytest.approx(expected)


def test_rows_are_apportioned_by_the_largest_remainders():
    assert apportioned([0.75, 0.25], 10) == [8, 2]  # 7.5 and 2.5: of equal remainders the first
    assert apportioned([0.5, 0.26, 0.24], 7) == [3, 2, 2]  # 3.5, 1.82 and 1.68


GROUPS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, ALWAYS]
"""Nine rows of one task, one of another, and a text."""


def test_an_epoch_goes_on_where_the_last_one_ended():
    mixture = Mixture(GROUPS, MixingConfig(temperature=2), seed=17)
    assert mixture.sizes == {0: 8, 1: 2}
    first, second = mixture.epoch(0), mixture.epoch(1)
    assert len(first) == len(second) == len(GROUPS)
    assert first.count(9) == second.count(9) == 2 and 10 in first and 10 in second
    large = [row for row in first if row < 9]
    assert len(set(large)) == 8 and set(large) | {row for row in second if row < 9} == set(range(9))
    assert mixture.unseen(1) == 1 and mixture.unseen(1.5) == mixture.unseen(2) == 0
    # One that goes on in the second epoch has seen no first.
    assert Mixture(GROUPS, MixingConfig(temperature=2), seed=17).epoch(1) == second
    assert Mixture(GROUPS, MixingConfig(temperature=2), seed=18).epoch(1) != second or first != second


def test_the_batches_of_an_epoch_hold_its_rows():
    mixture = Mixture(GROUPS, MixingConfig(temperature=2), seed=17)
    trainer = grouped_by_length(SimpleNamespace, [5] * len(GROUPS), 17, mixture.epoch)()
    trainer.args = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=1)
    sampler = trainer._get_train_sampler()
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == sorted(mixture.epoch(epoch)) and len(sampler) == len(GROUPS)


TASK = {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}
SETTINGS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_length": 64, "num_validations": 0}


@pytest.fixture
def given(tiny_model, make_tasks, tmp_path, monkeypatch):
    """Inputs of sft: nine chats of `echo`, one of `shout`, and texts beside them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    artifact.seal(tiny_model, "model/1")
    tasks = {"echo": TASK, "shout": TASK, "text": {**TASK, "verifier": {"kind": "perplexity"}}}
    asked = [{"task": name, "split": "validation", "prompt": "say a", "reference": "a"} for name in ("echo", "shout")]
    text = {"task": "text", "split": "train", "prompt": "", "reference": "abc"}
    rows = [(f"say {letter}", letter, "echo", "seed") for letter in "abcdefghi"] + [("say j", "JJ", "shout", "seed")]
    return write(tmp_path / "c", rows), make_tasks(tasks, [*asked, text]), tiny_model


def write(folder, rows):
    facts = {"tools": "", "parent": ""}
    made = [
        {**facts, "id": f"{prompt}-{origin}", "messages": chat(prompt, answer), "task": task, "origin": origin}
        for prompt, answer, task, origin in rows
    ]
    artifact.write_rows(folder, "chat/2", Chat.table(made))
    return folder


def run(given, target, **settings):
    chats, tasks, base = given
    config = SftConfig.model_validate({**SETTINGS, **settings})
    return sft(config, chats=chats, tasks=tasks, base_model=base, model=target)


def test_sft_mixes_its_tasks_and_tells_their_shares(given, tmp_path):
    metrics = run(given, tmp_path / "m", mixing={"temperature": 2})
    assert (metrics["sft/share_echo"], metrics["sft/share_shout"], metrics["sft/unseen"]) == (0.8, 0.2, 1)
    assert metrics["sft/chats"] == 10 and metrics["sft/texts"] == 1


def test_sft_learns_the_tasks_that_are_named_and_counts_the_others(given, tmp_path):
    metrics = run(given, tmp_path / "m", tasks=["shout"], num_validations=1)
    assert metrics["sft/chats"] == 1 and metrics["sft/other_tasks"] == 9 and metrics["sft/texts"] == 0
    assert metrics["sft/trained_tokens"] == 3  # two letters and the end
    both = run(given, tmp_path / "o", tasks=["shout", "text"])
    assert both["sft/texts"] == 1 and both["sft/trained_tokens"] == 3 + 4  # abc and its end
    with pytest.raises(DataError, match=r"sft\.tasks: found whisper; the recipe's tasks are echo, shout, text"):
        run(given, tmp_path / "n", tasks=["shout", "whisper"])
    with pytest.raises(DataError, match=r"sft\.tasks: no chat is of text; the chats are of echo, shout"):
        run(given, tmp_path / "n", tasks=["text"])


def test_of_a_corrected_chat_the_last_turn_alone_has_a_loss(given, tmp_path):
    again = [*chat("say a", "wrong"), *chat("again", "ab")]
    rows = [{"id": "x", "messages": again, "tools": "", "task": "echo", "origin": CORRECTED, "parent": ""}]
    artifact.write_rows(tmp_path / "again", "chat/2", Chat.table(rows))
    metrics = run((tmp_path / "again", *given[1:]), tmp_path / "m")
    assert metrics["sft/trained_tokens"] == 3 + 4  # ab and its end, and the text


def test_packed_rows_are_not_mixed():
    with pytest.raises(ValueError, match="packed rows stay what they are"):
        SftConfig.model_validate({**SETTINGS, "mixing": {"temperature": 2}, "packing": True})
