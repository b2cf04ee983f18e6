"""Reinforcement learning on a tiny real model: what it is rewarded for becomes likelier, and nothing is hidden."""

from __future__ import annotations

import logging
import math
import re

import pytest

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, guards, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.grpo import alarms
from bloomery.components.grpo.config import GrpoConfig, RewardWeights
from bloomery.components.grpo.rewards import Rewards
from bloomery.components.grpo.step import measured, tokens_of
from bloomery.components.grpo.step import run as grpo
from bloomery.components.grpo.trainer import trainer_for

TASK = {"letter": {"role": "domain", "splits": {}, "verifier": {"kind": "regex"}, "max_new_tokens": 8}}
ROWS = [
    {"task": "letter", "split": "unlabelled", "prompt": f"say {word}", "reference": "a.*"}
    for word in ("ab", "cd", "ef", "gh", "ij", "kl")
]
SMALL = {"learning_rate": 3e-3, "epochs": 10, "batch_size": 32, "max_length": 64, "max_grad_norm": 10.0}


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def base(talking_model):
    return talking_model


@pytest.fixture
def tasks(make_tasks):
    return make_tasks(TASK, ROWS)


def share(model) -> float:
    """Share of sampled answers that begin with an a: of a model that says each of eight words as often, an eighth."""
    answers = Generator.load(model).generate([chat("say qr")], max_new_tokens=8, num_samples=64, temperature=1.0)
    return sum(answer.startswith("a") for answer in answers[0]) / 64


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_reward_rises_on_a_task_that_can_be_learnt(base, tasks, tmp_path, algorithm, caplog):
    config = GrpoConfig(**SMALL, algorithm=algorithm, beta=0.01, kl_budget=1)
    with caplog.at_level(logging.WARNING, logger="bloomery"):
        metrics = grpo(config, base_model=base, tasks=tasks, model=tmp_path / "m")
    (told,) = [text for text in (record.getMessage() for record in caplog.records) if "kl_budget" in text]
    assert re.match(r"at optimiser step \d the reward rose from .* above kl_budget = 1:", told)
    assert metrics["grpo/prompts"] == 6 and metrics["grpo/too_long"] == 0
    assert metrics["grpo/reward_first"] < 0.4 and metrics["grpo/reward_last"] > 0.55
    assert metrics["grpo/kl_last"] * metrics["grpo/answer_tokens_last"] > 1 > metrics["grpo/kl_first"]
    assert metrics["grpo/entropy_last"] > 0
    checkpoints.check(tmp_path / "m")
    assert share(base) < 0.4 and share(tmp_path / "m") > 0.55


def test_an_adapter_is_trained_against_the_model_without_it_and_merged(base, tasks, tmp_path, caplog):
    adapter = {"kind": "lora", "rank": 8, "alpha": 64, "dropout": 0.1}
    config = GrpoConfig(**{**SMALL, "learning_rate": 5e-3}, adapter=adapter)
    with caplog.at_level(logging.WARNING, logger="bloomery"):
        metrics = grpo(config, base_model=base, tasks=tasks, model=tmp_path / "m")
    assert "kl_budget" not in caplog.text  # of 10 nats
    assert metrics["grpo/reward_last"] > metrics["grpo/reward_first"] + 0.2
    network, _ = checkpoints.load(tmp_path / "m")
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_the_model_sees_the_tokens_of_every_other_step(base, tasks):
    tokenizer = checkpoints.load_tokenizer(base)
    known = Tasks(tasks)
    found = tokens_of(tokenizer, known.to_sample_from("domain"), known, 64, GrpoConfig(**SMALL))
    assert sorted(row["prompt"] for row in found) == sorted(
        templates.prompt_tokens(tokenizer, chat(row["prompt"])) for row in ROWS
    )
    rewards = Rewards(RewardWeights(), tokenizer, templates.end_tokens(tokenizer), known, None)
    kind, _ = trainer_for(GrpoConfig(**SMALL), rewards)
    assert kind._tokenize_prompts(None, [[1, 2], [3]]) == ([[1, 2], [3]], None, {})


def test_an_answer_does_not_hang_on_which_others_are_asked_for(base):
    import torch

    generator = Generator.load(base)
    asked = [templates.prompt_tokens(generator.tokenizer, chat(f"say {text}")) for text in ("qr", "a", "abcdef", "qr")]
    given = {"max_new_tokens": 6, "temperature": 1.0}
    chances_NT = torch.rand((4, 6), generator=torch.Generator().manual_seed(1))
    together = generator.continued(asked, chances_NT=chances_NT, **given)
    alone = [generator.continued([ids], chances_NT=chances_NT[at : at + 1], **given)[0] for at, ids in enumerate(asked)]
    assert together == alone and together[0] != together[3]
    twice = generator.continued(asked[:1], num_samples=2, chances_NT=chances_NT[[0, 3]], **given)
    assert twice == [[*together[0], *together[3]]]


def test_what_an_answer_is_worth(base, make_tasks):
    tokenizer = checkpoints.load_tokenizer(base)
    tasks = Tasks(make_tasks({"letter": {**TASK["letter"], "max_new_tokens": 10}}, ROWS))
    (end,) = templates.end_tokens(tokenizer)
    weights = RewardWeights(length=0.5, format=2.0, format_pattern="e.")
    rewards = Rewards(weights, tokenizer, [end], tasks, None)
    assert [(reward.__name__, weight) for reward, weight in rewards.chosen()] == [
        ("verifier", 1.0),
        ("length", 0.5),
        ("format", 2.0),
    ]
    texts = ["ef", "fe", "e" * 9, "f" * 9 + "e"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [end] for text in texts]
    columns = {"completion_ids": ids, "task": ["letter"] * 4, "reference": ["e.*"] * 4}
    assert rewards.verifier(**columns) == [1.0, 0.0, 1.0, 0.0]
    # 3, 3, 10 and 11 tokens of 10, where length costs from the 8th on.
    assert rewards.length(**columns) == [0, 0, -1, -1]
    columns["completion_ids"][2] = ids[2][1:]
    assert rewards.length(**columns)[2] == pytest.approx(-0.5)
    assert rewards.format(**columns) == [1.0, 0.0, 0.0, 0.0]


def test_a_generation_is_of_one_step_and_every_prompt_is_asked_once_an_epoch(base, tasks, tmp_path, caplog):
    """Four prompts a step of six: the second step of an epoch is filled up with two from the beginning of the epoch."""
    config = GrpoConfig(**{**SMALL, "batch_size": 16, "gradient_accumulation_steps": 2})
    known = Tasks(tasks)
    tokenizer = checkpoints.load_tokenizer(base)
    rewards = Rewards(config.rewards, tokenizer, [1], known, None)
    kind, _ = trainer_for(config, rewards)

    class Given:
        train_dataset = range(6)

        class args:
            generation_batch_size, steps_per_generation = 32, 2

    order = list(kind._get_train_sampler(Given))
    assert len(order) == 2 * 32 * 2
    generations = [order[at : at + 32] for at in range(0, len(order), 32)]
    assert generations[0] == generations[1] and generations[2] == generations[3]
    asked = [group[::8] for group in (generations[0], generations[2])]
    assert sorted(asked[0] + asked[1][:2]) == list(range(6)) and asked[1][2:] == asked[0][:2]
    assert all(generations[0][at : at + 8] == [asked[0][at // 8]] * 8 for at in range(0, 32, 8))


def test_a_training_without_spread_is_named(base, make_tasks, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(guards, "STEPS_UNTIL_REACHED", 2)
    rows = [{**row, "reference": "never, never"} for row in ROWS]
    with caplog.at_level(logging.WARNING, logger="bloomery"):
        metrics = grpo(
            GrpoConfig(**{**SMALL, "epochs": 2, "beta": 0.0, "temperature": 3.0}),  # four steps
            base_model=base,
            tasks=make_tasks(TASK, rows),
            model=tmp_path / "m",
        )
    assert "all answers to a prompt are worth the same, of 100% of the prompts (mean reward 0)" in caplog.text
    assert "had no gradient" not in caplog.text  # nothing stands between what is trained and the loss
    assert "answers are cut at max_new_tokens" in caplog.text
    assert metrics["grpo/spread_last"] == 0 and "grpo/kl_last" not in metrics


STEP = {"frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.1, "completions/mean_length": 20.0}


def test_the_alarms_hold_their_thresholds():
    def course(**last):
        first = {**STEP, "reward": 0.2, "kl": 0.01}
        return [first] * 4 + [{**first, "reward": 0.6, **last}] * 4

    assert not alarms.no_spread(course()) and not alarms.cut_short(course())
    assert "95% of the prompts (mean reward 0.6)" in alarms.no_spread(course(frac_reward_zero_std=0.95))
    assert "30% of the answers are cut" in alarms.cut_short(course(**{"completions/clipped_ratio": 0.3}))
    # 0.6 nats a token of 20 tokens are 12 nats an answer.
    assert "from 0.2 to 0.6 while the answers went 12 nats away" in alarms.over_budget(course(kl=0.6), 10)
    assert not alarms.over_budget(course(kl=0.6), 13)
    assert not alarms.over_budget(course(kl=0.6, reward=0.1), 10)
    assert not alarms.over_budget(course(kl=0.6)[2:], 10)  # too early to tell
    # Of four scores each, 0.7 ± 0.041 and then 0.5 ± 0.041: less by 0.2, which is more than twice 0.058.
    scores = [{alarms.VERIFIER: score} for score in (0.6, 0.7, 0.7, 0.8, 0.4, 0.5, 0.5, 0.6)]
    falling = [{**entry, **score} for entry, score in zip(course(), scores, strict=True)]
    assert "from 0.2 to 0.6 while the verifier's score fell from 0.7 to 0.5" in alarms.against_verifier(falling)
    assert not alarms.against_verifier([*falling[:4], *({**entry, alarms.VERIFIER: 0.6} for entry in falling[4:])][1:])
    assert not alarms.against_verifier([{**entry, "reward": 0.2} for entry in falling])
    near = [{**entry, alarms.VERIFIER: entry[alarms.VERIFIER] + 0.1 * (at > 3)} for at, entry in enumerate(falling)]
    assert not alarms.against_verifier(near)  # 0.7 and 0.6: less by 0.1


def test_the_course_is_told_by_its_first_and_last_tenth():
    history = [{**STEP, "reward": at / 20, "entropy": 1.0, "kl": at / 10} for at in range(20)]
    told = measured(history)
    assert told["reward_first"] == pytest.approx(0.025) and told["reward_last"] == pytest.approx(0.925)
    assert told["kl_last"] == pytest.approx(1.85) and told["spread_first"] == 0.5
    assert "verifier_first" not in told and math.isclose(told["answer_tokens_last"], 20)


def test_settings_that_reward_nothing_or_break_groups_are_refused():
    from bloomery.components.core.config import parse

    with pytest.raises(ConfigError, match="gradient_accumulation_steps = 12 .*the nearest that is one: 16"):
        parse(GrpoConfig, {**SMALL, "batch_size": 12}, where="grpo")
    with pytest.raises(ConfigError, match="format and format_pattern"):
        parse(GrpoConfig, {**SMALL, "rewards": {"format": 1.0}}, where="grpo")
    with pytest.raises(ConfigError, match="no reward is left"):
        parse(GrpoConfig, {**SMALL, "rewards": {"verifier": 0, "reward_model": 0}}, where="grpo")
    assert parse(GrpoConfig, {**SMALL, "rewards": {"verifier": 0}}, where="grpo").needed_inputs == {"reward_model"}
    assert not GrpoConfig(**SMALL).needed_inputs


def test_without_a_question_it_says_so(base, make_tasks, tmp_path):
    rows = [{**row, "split": "test"} for row in ROWS]
    with pytest.raises(DataError, match="no domain task has questions"):
        grpo(GrpoConfig(**SMALL), base_model=base, tasks=make_tasks(TASK, rows), model=tmp_path / "m")
