"""`bloomery plan` from the recipe to what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.pipelines.cli import app

MODEL = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
RECIPE = """
name: plan-me
registered_model: m
base_model: ./llama
tasks:
  qa:
    role: domain
    templates: [{prompt: "{q}", answer: "{a}"}]
    verifier: {kind: exact}
    splits:
      train: {path: qa.jsonl}
      test: {path: qa.jsonl}
stages:
  - sft: {learning_rate: 1.0e-5, epochs: 2, batch_size: 32, max_length: 2048}
  - rejection_sampling: {num_samples: 2}
  - dpo: {learning_rate: 1.0e-6, epochs: 1, batch_size: 2, max_length: 1024, adapter: {rank: 16}}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    # With `user ` and `\nassistant ` before them 20 characters of turns: of 40 in all, 10 tokens.
    rows = [{"q": "q" * 12, "a": "a" * 12}] * 8
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def asked(recipe: Path, *arguments: str) -> dict:
    result = CliRunner().invoke(app, ["plan", str(recipe), *arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_every_training_of_the_recipe_is_planned(recipe):
    told = asked(recipe, "--gpu", "H100", "--price", "3", "--tokens", "dpo=1_000_000")
    assert told["model"]["parameters"] == 8_030_261_248
    sft, dpo = told["stages"]
    assert not sft["fits"] and "adapter" in sft["fix"]["settings"]
    assert sft["tokens"] == 80 and sft["epochs"] == 2
    assert dpo["fits"] and dpo["trained"] == 41_943_040 and dpo["fix"] is None
    assert dpo["tokens"] == 1e6
    assert dpo["seconds"] == pytest.approx(dpo["flops"] / (989e12 * 0.4))
    assert dpo["cost"] == pytest.approx(dpo["seconds"] / 3600 * 3)
    assert told["answers"]["fits"] and told["rules"]["inference: bytes x parameters x 1.2"] == 2.4 * 8_030_261_248


def test_cards_that_share_a_training_share_its_time_and_if_asked_its_weights(recipe):
    given = ["--gpu", "H100", "--price", "3", "--set", "resources.accelerator=gpu", "--set", "resources.accelerators=8"]
    one, (ddp, _) = asked(recipe, "--gpu", "H100", "--price", "3")["stages"][0], asked(recipe, *given)["stages"]
    assert ddp["accelerators"] == 8 and not ddp["sharded"] and not ddp["fits"]
    assert ddp["peak_bytes"] == one["peak_bytes"] and ddp["fix"]["settings"]["resources.sharding"] == "full"
    assert ddp["seconds"] == pytest.approx(one["seconds"] / 8) and ddp["cost"] == pytest.approx(one["cost"])
    settings = ("resources.sharding=full", "sft.batch_size=4", "sft.gradient_checkpointing=true")
    sharded = [part for setting in settings for part in ("--set", setting)]
    fsdp = asked(recipe, *given, *sharded)["stages"][0]
    assert fsdp["sharded"] and fsdp["fits"] and fsdp["dtype"] == "fp32"
    assert fsdp["bytes"]["weights"] == 4 * 8_030_261_248 / 8
    told = CliRunner().invoke(app, ["plan", str(recipe), *given, *sharded], catch_exceptions=False).stdout
    assert "checkpointing, 8 cards that each hold a part of it" in told


def test_a_plan_is_told_in_words(recipe):
    result = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "T4"], catch_exceptions=False)
    assert "8.03 B parameters (llama, sdpa attention), 16.1 GB as stored" in result.stdout
    assert "DOES NOT FIT" in result.stdout
    assert "tokens are made by the stages before it; give them with --tokens dpo=NUMBER" in result.stdout


def test_mistakes_are_one_message(recipe):
    for arguments, kind, told in (
        (["--gpu", "H10"], ConfigError, "did you mean H100?"),
        (["--tokens", "sft"], ConfigError, "expected STAGE=NUMBER"),
        (["--tokens", "cpt=5"], ConfigError, "no stage of this name trains; known: sft, dpo"),
        (["--set", "base_model=/nowhere"], ModelError, "base_model: no folder /nowhere"),
    ):
        error = CliRunner().invoke(app, ["plan", str(recipe), *arguments]).exception
        assert isinstance(error, kind) and told in str(error)
