"""A model with a layer that does nothing, and the search that finds it."""

import copy
import statistics

import pytest
import torch
from chats import write_chats

from bloomery.components.core import artifact, tracking
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, costs
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.nas.config import NasConfig
from bloomery.components.nas.step import run

PAIRS = [("say abab", "abab"), ("say cdab", "cd")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 7}}
TEXTS = {"plain": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}}}
WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")


def deepened(talking_model, folder, idle):
    """The model that has learnt to talk, with so many layers in its middle that add next to nothing."""
    network, tokenizer = checkpoints.load(talking_model)
    first, last = network.model.layers
    between = [copy.deepcopy(first) for _ in range(idle)]
    for layer in between:
        layer.self_attn.o_proj.weight.data.mul_(1e-4)
        layer.mlp.down_proj.weight.data.mul_(1e-4)
    network.model.layers = torch.nn.ModuleList([first, *between, last])
    network.config.num_hidden_layers = 2 + idle
    checkpoints.save(folder, network, tokenizer)
    return folder


@pytest.fixture(scope="module")
def deep(talking_model, tmp_path_factory):
    return deepened(talking_model, tmp_path_factory.mktemp("deep") / "model", idle=1)


@pytest.fixture
def given(deep, tmp_path):
    chats = write_chats(tmp_path / "chats", PAIRS)
    return {"base_model": deep, "chats": chats, "model": tmp_path / "small"}


def rows(task="echo"):
    """Questions with the answers that the model has learnt (`talking_model`)."""
    said = [
        (f"say {WORDS[one]}{WORDS[other]}", WORDS[(3 * one + 5 * other) % 8] * (1 + (one + other) % 3))
        for one, other in ((0, 0), (1, 2), (2, 5), (3, 1), (6, 4), (7, 7))
    ]
    return [
        {"task": task, "split": "validation", "prompt": ask if task == "echo" else "", "reference": answer}
        for ask, answer in said
    ]


def limit(deep, given, make_tasks, **settings):
    """The bytes of a search's smallest shape."""
    with pytest.raises(ConfigError) as error:
        run(NasConfig(**settings, max_bytes=1), **given, tasks=make_tasks(TASK, rows(), name="limit"))
    assert "nas: no sub-network keeps the limit; the smallest takes" in str(error.value)
    return int(str(error.value).split("takes ")[1].split()[0].replace(",", ""))


def test_the_idle_layer_is_left_out(deep, given, make_tasks):
    two = limit(deep, given, make_tasks, num_hidden_layers=[2])
    config = NasConfig(num_hidden_layers=[1, 2, 3], max_bytes=two, population=4, generations=1)
    with tracking.track("nas", {}) as tracker:
        metrics = run(config, **given, tasks=make_tasks(TASK, rows()))
    artifact.read_manifest(given["model"], "model/1")
    small, whole = (checkpoints.load(path)[0] for path in (given["model"], deep))
    assert small.config.num_hidden_layers == 2 and metrics["nas/bytes"] == two < metrics["nas/parent_bytes"]
    for mine, theirs in zip(small.model.layers, (whole.model.layers[0], whole.model.layers[2]), strict=True):
        assert torch.equal(mine.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    assert metrics["nas/score"] == metrics["nas/parent_score"]
    asked = [chat(row["prompt"]) for row in rows()]
    said, before = (Generator.load(path).generate(asked, max_new_tokens=7) for path in (given["model"], deep))
    assert said == before and all(one for (one,) in said)
    assert metrics["nas/loss"] == pytest.approx(metrics["nas/parent_loss"], abs=1e-2)
    assert 2 <= metrics["nas/judged"] <= 6  # layers 0 1 2 in twos and alone: all that keep the limit
    best = tracker.shown["front"][-1]
    assert best["layers"] == "0, 2" and best["bytes"] == two and best["score"] == metrics["nas/score"]


def test_a_limit_of_time_rules_out_what_is_better_and_slower(talking_model, make_tasks, tmp_path):
    """One layer of 48 is worse than all of them, and some twenty times as fast: another program may disturb one of the
    times fivefold."""
    base = deepened(talking_model, tmp_path / "base", idle=46)
    whole = 1000 * statistics.median(costs.measured(base)["decode_seconds_per_token"] for _ in range(3))
    given = {"base_model": base, "chats": write_chats(tmp_path / "chats", PAIRS), "tasks": make_tasks(TASK, rows())}
    found = {}
    for limit in (5 * whole, whole / 5):
        config = NasConfig(num_hidden_layers=[1, 48], max_latency_ms=limit, population=2, generations=0)
        found[limit] = run(config, **given, model=tmp_path / f"{limit}")
    loose, tight = found.values()
    assert (loose["nas/layers"], tight["nas/layers"]) == (48, 1)
    assert tight["nas/loss"] > loose["nas/loss"] == pytest.approx(loose["nas/parent_loss"], rel=1e-6)
    assert 1000 * tight["nas/decode_seconds_per_token"] < whole / 5


def test_widths_are_searched_by_the_loss_of_texts(given, make_tasks):
    config = NasConfig(
        num_key_value_heads=[1, 2], intermediate_size=[32, 64], max_bytes=10**9, population=4, generations=0
    )
    metrics = run(config, **given, tasks=make_tasks(TEXTS, rows("plain")))
    assert metrics["nas/judged"] == 4 and "nas/score" not in metrics
    shape = (metrics["nas/layers"], metrics["nas/key_value_heads"], metrics["nas/channels"])
    assert shape[0] == 3 and metrics["nas/decode_seconds_per_token"] > 0
    if shape == (3, 2, 64):
        assert metrics["nas/loss"] == pytest.approx(metrics["nas/parent_loss"], rel=1e-6)
    else:
        assert metrics["nas/loss"] < metrics["nas/parent_loss"]


def test_what_cannot_be_searched_is_refused(given, make_tasks):
    with pytest.raises(ConfigError, match="nas.num_hidden_layers: found 4; the model has 3"):
        run(NasConfig(num_hidden_layers=[4], max_bytes=9), **given, tasks=make_tasks(TASK, rows()))
    with pytest.raises(DataError, match="nas: no task has rows in a split `validation`"):
        train = [{**row, "split": "train"} for row in rows()]
        run(NasConfig(num_hidden_layers=[2], max_bytes=10**9), **given, tasks=make_tasks(TASK, train, name="none"))
