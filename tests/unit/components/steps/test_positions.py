"""A row of more tokens than a model knows positions is refused before anything is trained; cpt and sft have tests of
their own."""

from __future__ import annotations

import json
import shutil

import pytest
from chats import preference_row

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, reward_models
from bloomery.components.core.modelling.preference_pairs import Pair
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.core.records import Preference
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.losses import single, single_rows
from bloomery.components.dpo.step import run as dpo
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.grpo.step import run as grpo
from bloomery.components.reward_model.config import RewardModelConfig
from bloomery.components.reward_model.step import run as reward_model

SETTINGS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "max_length": 64}
LONGEST = preference_row("x" * 20, "ab", "longer")  # 22 tokens of prompt, 7 of the longer answer with its end
SCORED = [
    {**preference_row(row[0], row[1], "-"), "rejected": [], "score": row[2]}
    for row in (("x" * 20, "ab", 1.0), ("y", "b", 2.0))
]


@pytest.fixture
def knows(tiny_model, tmp_path):
    """The tiny model as one that knows so many positions."""

    def made(positions: int):
        folder = tmp_path / f"knows-{positions}"
        shutil.copytree(tiny_model, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
        return folder

    return made


def written(folder, rows):
    artifact.write_rows(folder, "preference/3", Preference.table(rows))
    return folder


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_dpo_refuses_a_pair_of_more(knows, tmp_path, loss):
    given = {"preferences": written(tmp_path / "p", [LONGEST]), "model": tmp_path / "m"}
    with pytest.raises(ConfigError, match="dpo: rows have up to 29 tokens and the model knows 28 positions"):
        dpo(DpoConfig(loss=loss, **SETTINGS), base_model=knows(28), **given)


def test_the_other_answer_that_kto_reads_after_a_prompt_makes_no_longer_row(knows):
    network, _ = checkpoints.load(knows(24))
    pairs = [Pair([5] * 20, [6] * 3, []), Pair([5] * 2, [], [7] * 15)]
    rows = single_rows(DpoConfig(loss="kto", **SETTINGS), network, pairs, single(pairs))
    assert sorted((len(row["prompt_ids"]), len(row["KL_completion_ids"])) for row in rows) == [(2, 3), (20, 4)]


def test_a_reward_model_refuses_a_chat_of_more(knows, tmp_path):
    given = {"base_model": knows(24), "reward_model": tmp_path / "m"}
    with pytest.raises(ConfigError, match="reward_model: rows have up to 29 tokens and the model knows 24 positions"):
        reward_model(RewardModelConfig(**SETTINGS), preferences=written(tmp_path / "p", [LONGEST]), **given)
    config = RewardModelConfig(validation_share=1e-9, **SETTINGS)
    with pytest.raises(ConfigError, match="reward_model: rows have up to 25 tokens and the model knows 24 positions"):
        reward_model(config, preferences=written(tmp_path / "s", SCORED), **given)


def test_grpo_asks_nothing_that_leaves_no_room_for_the_longest_answer_of_any_task(knows, make_tasks, tmp_path):
    """An answer of the short task may go on as long as one of the other, which is sampled beside it."""
    task = {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}}
    configs = {"short": {**task, "max_new_tokens": 2}, "wordy": {**task, "max_new_tokens": 40}}
    asked = {"short": "x" * 20, "wordy": "y"}
    rows = [{"task": name, "split": "train", "prompt": text, "reference": "z"} for name, text in asked.items()]
    given = {"tasks": make_tasks(configs, rows), "model": tmp_path / "m"}
    told = "grpo: tasks.short: 1 of 1 questions do not fit: the longest has 22 tokens, and the model's context leaves"
    with pytest.raises(DataError, match=f"{told} 20 "):
        grpo(GrpoConfig(**SETTINGS), base_model=knows(60), **given)
    RewardModel(*reward_models.load(knows(61), dtype="auto")).save(tmp_path / "scorer", like=tmp_path / "knows-61")
    with pytest.raises(DataError, match=f"{told} 21 "):  # beside a reward model that knows fewer than the model
        grpo(GrpoConfig(**SETTINGS), base_model=knows(64), reward_model=tmp_path / "scorer", **given)
