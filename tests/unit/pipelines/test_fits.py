"""A pipeline is not compiled for tasks and cards that its stages do not fit."""

from __future__ import annotations

import json
import logging

import pytest
import yaml
from published import LLAMA_8B
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import fits, recipe
from bloomery.pipelines.cli import app

PARAMETERS = 8_030_261_248
GPU = {"profile": "gpu-1", "card": "h100"}


@pytest.fixture
def write(tmp_path):
    """Writes a recipe with these resources and settings of its one stage, of an 8 B model; its path."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")

    def written(resources, base_model="./llama", **settings):
        training = {"learning_rate": 1e-5, "epochs": 1, "batch_size": 8, "max_length": 1024, **settings}
        task = {"role": "domain", "templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
        task |= {"max_new_tokens": 64, "splits": {"train": {"path": "q.jsonl"}, "test": {"path": "t.jsonl"}}}
        values = {"name": "shop", "registered_model": "m", "base_model": base_model, "tasks": {"t": task}}
        values |= {"stages": [{"sft": training}], "resources": resources}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return written


def problems(file):
    with pytest.raises(ConfigError) as caught:
        fits.check(recipe.load(file))
    return str(caught.value).split("\n")


def test_a_training_larger_than_the_card_is_told_with_the_change_that_fits(write):
    (line,) = problems(write(GPU))
    assert line.startswith("sft: ") and "GB of memory are planned, and H100 (resources.card) has 85.5" in line
    settings = line.partition("; cheapest change: ")[2].partition(" (")[0]
    assert "adapter: {rank: 16}" in settings
    changed = yaml.safe_load("{" + settings + "}")
    fits.check(recipe.load(write(GPU, **changed)))  # what it says does fit


def test_without_a_card_only_the_memory_of_tasks_is_looked_at(write):
    fits.check(recipe.load(write({"profile": "gpu-1"})))
    (line,) = problems(write({"profile": "gpu-1", "memory_per_accelerator": "16Gi"}))
    need = 580e6 + 4 * PARAMETERS
    assert line == (
        f"sft: {need / 1e9:.1f} GB of memory are planned, and its task, beside its card, has 17.2; "
        "cheapest change: resources.steps.sft.memory: 34Gi"
    )


def test_each_process_of_a_node_reads_all_weights(write):
    node = {"profile": "gpu-8", "sharding": "full", "card": "H100", "memory_per_accelerator": "32Gi"}
    settings = {"batch_size": 1, "gradient_checkpointing": True}
    fits.check(recipe.load(write({**node, "memory_per_accelerator": "64Gi"}, **settings)))
    (line,) = problems(write({**node, "memory_per_accelerator": "24Gi"}, **settings))
    assert f"sft: {8 * (580e6 + 4 * PARAMETERS) / 1e9:.1f} GB" in line and "beside 8 cards, has 206.2" in line


def test_a_task_without_an_accelerator_needs_its_memory_for_all(write):
    told = problems(write({"memory": "16Gi"}, adapter={"rank": 8}))
    assert [line.partition(":")[0] for line in told] == ["sft", "evaluation"]
    assert all("its task has 17.2" in line for line in told)
    assert "resources.steps.evaluation.memory: " in told[1]
    memory = told[0].partition("resources.steps.sft.memory: ")[2].split(" ")[0]
    larger = {"memory": "64Gi", "steps": {"sft": {"memory": memory}}}
    fits.check(recipe.load(write(larger, adapter={"rank": 8})))


@pytest.mark.parametrize("name", ["org/model-that-is-nowhere", "s3://bucket/model", "/nowhere/model"])
def test_nothing_is_fetched_for_it(write, caplog, name):
    with caplog.at_level(logging.INFO):
        fits.check(recipe.load(write(GPU, base_model=name)))
    assert f"memory is not planned: base_model: the config.json of {name} is not on this machine" in caplog.text


def test_the_commands_refuse_it_and_plan_takes_its_card(write, tmp_path):
    file = write(GPU)
    error = CliRunner().invoke(app, ["compile", file, "-o", str(tmp_path / "p.yaml")]).exception
    assert isinstance(error, ConfigError) and "H100 (resources.card)" in str(error)
    assert not (tmp_path / "p.yaml").exists()
    error = CliRunner().invoke(app, ["submit", file, "--in-image", "--endpoint", "http://localhost:1"]).exception
    assert isinstance(error, ConfigError) and "H100 (resources.card)" in str(error)
    told = json.loads(CliRunner().invoke(app, ["plan", file, "--json"], catch_exceptions=False).stdout)
    assert told["card"]["name"] == "H100"


def test_an_unknown_card_and_one_without_an_accelerator_are_refused(write):
    with pytest.raises(ConfigError, match="found H10: no such card; did you mean H100?"):
        recipe.load(write({"profile": "gpu-1", "card": "H10"}))
    with pytest.raises(ConfigError, match="card, node_pool and tolerations are the accelerator's"):
        recipe.load(write({"card": "H100"}))
