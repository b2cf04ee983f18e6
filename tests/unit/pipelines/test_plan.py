"""`bloomery plan` from the recipe to what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published import LLAMA_8B
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.pipelines.cli import app

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
TRAIN = "learning_rate: 1.0e-5, epochs: 1, batch_size: 1, max_length: 512"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    # With `user ` and `\nassistant ` before them 20 characters of turns: of 40 in all, 10 tokens.
    rows = [{"q": "q" * 12, "a": "a" * 12}] * 8
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def asked(recipe: Path, *arguments: str) -> dict:
    result = CliRunner().invoke(app, ["plan", str(recipe), *arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_tokens_are_those_of_the_model_s_template(recipe, tiny_model):
    from bloomery.components.core.data.chats import chat
    from bloomery.components.core.modelling import checkpoints, templates

    text = recipe.read_text(encoding="utf-8").replace("base_model: ./llama", f"base_model: {tiny_model}")
    pair = {"prompt": "which?", "chosen": "this one", "rejected": "that"}
    (recipe.parent / "pairs.jsonl").write_text("\n".join([json.dumps(pair)] * 3), encoding="utf-8")
    text = text.replace("  - rejection_sampling: {num_samples: 2}\n", "")
    recipe.write_text(text + "preferences: [{name: own, path: pairs.jsonl}]\n", encoding="utf-8")
    sft, dpo = asked(recipe)["stages"]
    tokenizer = checkpoints.load_tokenizer(tiny_model)

    def number(asked_for, said):
        return sum(len(ids) for ids, _ in templates.trained_rows(tokenizer, chat(asked_for, said)))

    assert sft["tokens"] == 8 * number("q" * 12, "a" * 12)
    assert dpo["tokens"] == 3 * (number("which?", "this one") + number("which?", "that"))


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
    eight = ["--set", "resources.accelerator=nvidia.com/gpu", "--set", "resources.accelerators=8"]
    given = ["--gpu", "H100", "--price", "3", *eight]
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

def test_what_makes_a_model_smaller_is_planned_and_what_follows_it_in_its_shape(recipe):
    """Of 32 layers 24 stay, of 14,336 channels 12,288, and of 8 groups of heads 4."""
    smaller = "{num_hidden_layers: 24, num_key_value_heads: 4, intermediate_size: 12288, importance: taylor}"
    search = "{num_hidden_layers: [12, 20], max_bytes: 100000000000, population: 2, generations: 0, validation_rows: 8}"
    text = RECIPE.replace("stages:", f"stages:\n  - sft: {{as: first, {TRAIN}}}\n  - pruning: {smaller}")
    text = text.replace("splits:", "splits:\n      validation: {path: qa.jsonl}")
    recipe.write_text(f"{text}  - nas: {search}\n  - sft: {{as: healed, {TRAIN}}}\n", encoding="utf-8")
    told = asked(recipe, "--gpu", "H100")
    layer = (2 * 4096 + 2 * 1024) * 4096 + 3 * 4096 * 14336 + 2 * 4096
    small = (2 * 2048 + 2 * 512) * 4096 + 3 * 4096 * 12288 + 2 * 4096
    ends = 2 * 128256 * 4096 + 4096
    sizes = {one["stage"]: one["parameters"] for one in told["stages"]}
    pruned = 24 * small + ends
    assert sizes == {"first": 32 * layer + ends, "sft": pruned, "dpo": pruned, "healed": 20 * small + ends}
    pruning, nas = told["surgery"]
    assert (pruning["parameters"], pruning["parameters_after"]) == (32 * layer + ends, pruned)
    assert (nas["parameters"], nas["parameters_after"]) == (pruned, 20 * small + ends)
    # Its weights in 16 bits stand beside those of the largest sub-network; the loss of a row has all logits thrice.
    assert nas["bytes"]["weights"] == 2 * pruned and nas["bytes"]["sub-network"] == 2 * (20 * small + ends)
    assert pruning["bytes"]["weights"] == 2 * (32 * layer + ends) and pruning["bytes"]["logits"] == 12 * 512 * 128256
    assert pruning["flops"] == 128 * 512 * 6 * (32 * (layer - 2 * 4096) + 128256 * 4096)
    assert list(told["not_planned"]) == ["rejection_sampling"]
    words = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "H100"], catch_exceptions=False).stdout
    assert "not planned: rejection_sampling: it trains nothing" in words
    assert f"nas: {pruned / 1e9:.3g} B parameters to " in words
    recipe.write_text(f"{text}  - pruning: {{as: again, num_hidden_layers: 25}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="again.num_hidden_layers: found 25; the model has 24"):
        asked(recipe)


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
