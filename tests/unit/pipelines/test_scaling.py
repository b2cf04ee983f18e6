"""How a chain grows, against hand-computed numbers, and the page that tells it against the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import cards
from bloomery.pipelines import launch, planned, scaling
from bloomery.pipelines import scaling_constants as known
from bloomery.pipelines.cli import app

ROOT = Path(__file__).parents[3]
PARAMETERS = 8_030_261_248
H100 = cards.named("H100")


def grown(*settings, price=4.0, tokens=None):
    recipe = launch.load(str(ROOT / scaling.RECIPE), settings, prepare=False)
    return scaling.of_recipe(recipe, H100, tokens=tokens or {"sft": 1e8}, utilisation=0.4, price=price)


def row(told, size, number):
    return next(one for one in told["rows"] if (one["tokens"], one["cards"]) == (size, number))


def part(told, size, number, name):
    return next(one for one in row(told, size, number)["parts"] if one["name"] == name)


def test_the_page_is_what_the_command_prints(monkeypatch):
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page == scaling.page(), "python -m bloomery.pipelines.scaling"
    monkeypatch.chdir(ROOT)
    command = next(line for line in page.partition(scaling.MARK)[2].splitlines() if line.startswith("    bloomery "))
    printed = CliRunner().invoke(app, command.split()[1:], catch_exceptions=False).stdout
    assert page.endswith(f"\n\n{printed}")


def test_rates_are_those_that_were_measured():
    """Two cores, so twice the seconds, from 100 documents to the largest number that was run alone."""
    files = (ROOT / "tests" / "benchmarks" / f"{name}.json" for name in ("scale", "throughput"))
    grown, own = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    at = {
        step: {one["documents"]: one for one in grown["steps"][step]["sizes"]} for step in ("data_curation", "dedup")
    }

    def rate(step, most):
        return (most - 100) / (at[step][most]["seconds"] - at[step][100]["seconds"]) / 2

    many, few = (at["dedup"][number]["peak_gib"] * 2**30 for number in (1_000_000, 100_000))
    cached = 2**30 - 100_000 * own["documents"]["bytes_a_document"]
    for constant, measured in (
        (known.CURATION, rate("data_curation", 100_000)),
        (known.DEDUP, rate("dedup", 1_000_000)),
        (known.HELD, (many - few - cached) / 900_000),
        (known.TOKENISING, own["tokenising"]["tokens_a_core_second"]),
        (known.DOCUMENT, own["documents"]["bytes_a_document"]),
        (known.STORED, own["documents"]["stored_bytes_a_byte"]),
    ):
        assert constant.value == pytest.approx(measured, rel=0.01), constant.name
    assert all(own["commit"] in constant.source for constant in (known.TOKENISING, known.DOCUMENT, known.STORED))


def test_cards_over_nodes_lose_what_was_measured_of_sixteen_times_as_many():
    alone = cards.seconds_of(1e18, H100, 0.4)
    assert alone == pytest.approx(1e18 / (989e12 * 0.4))
    assert cards.seconds_of(1e18, H100, 0.4, 8) == pytest.approx(alone / 8)
    assert cards.seconds_of(1e18, H100, 0.4, 128) == pytest.approx(alone / 128 * 5_762 / 5_605)
    assert cards.seconds_of(1e18, cards.Card("unknown", 1e9, 0, 0), 0.4) is None


def test_steps_of_data_take_cores_copies_and_a_place_on_the_store():
    """64 cores on 4 GB of text; it comes over one connection, goes over one, and over four to our own store."""
    told = part(grown(), 1e9, 8, "data_curation")
    stored = 4e9 * known.STORED.value
    assert told["seconds"] == pytest.approx(4e9 / known.DOCUMENT.value / (64 * known.CURATION.value))
    assert told["copying"] == pytest.approx((4e9 + stored + stored / 4) / 87.5e6)
    assert told["traffic"] == pytest.approx(4e9 + 2 * stored) and told["kept"] == pytest.approx(2 * stored)
    hours = (told["seconds"] + told["copying"]) / 3600
    assert told["cost"] == pytest.approx(hours * 64 * 0.0425 + 2 * stored / 1e9 * 0.023)


def test_a_training_is_as_planned_and_its_cards_wait_for_tokens_and_checkpoints():
    told = grown()
    recipe = launch.load(str(ROOT / scaling.RECIPE), prepare=False)
    given = {"tokens": {"cpt": 1e12, "sft": 1e8}, "utilisation": 0.4, "price": None}
    cpt, sft = planned.of_recipe(recipe, H100, **given)["stages"]
    one, tokens = part(told, 1e12, 8, "cpt"), part(told, 1e12, 8, "cpt: tokenising")
    assert one["seconds"] == pytest.approx(cpt["seconds"])
    assert part(told, 1e9, 8, "sft")["seconds"] == part(told, 1e13, 8, "sft")["seconds"] == sft["seconds"]
    model, checkpoint, times = 2 * PARAMETERS, 12 * PARAMETERS, one["seconds"] // 7200
    assert one["copying"] == pytest.approx(2 * model / 87.5e6 + (model + times * checkpoint) / 350e6)
    assert tokens["seconds"] == pytest.approx(1e12 / (64 * known.TOKENISING.value))  # 8 cores a card, of one node
    hours = (tokens["seconds"] + tokens["copying"]) / 3600
    assert tokens["cost"] == pytest.approx(hours * 8 * 4.0 + 4e12 / 1e9 * 0.023)
    fewer = part(told, 1e12, 512, "cpt: tokenising")
    assert fewer["seconds"] == tokens["seconds"]


def test_the_first_thing_that_does_not_fit_is_the_bottleneck_else_what_takes_longest():
    told = grown()
    assert row(told, 1e13, 512)["bottleneck"].startswith("disk of data_curation: ")
    assert row(told, 1e13, 512)["seconds"] is row(told, 1e13, 512)["cost"] is None
    small = row(grown("resources.steps.dedup.memory=1Gi"), 1e10, 8)
    need = 4e10 / known.DOCUMENT.value * known.HELD.value
    assert need > 2**30 and small["bottleneck"] == f"memory of dedup: {need / 1e9:.3g} GB of 1.07 GB"
    assert small["takes_over"] == "nothing here"
    alone, shared = row(told, 1e9, 1), row(told, 1e10, 8)
    assert alone["bottleneck"].startswith("memory of a card in sft: ") and alone["takes_over"] == "torchrun"
    assert shared["bottleneck"] == "cards of cpt" and shared["takes_over"] == "TrainJob"
    longest = max(one["seconds"] for one in shared["parts"])
    assert part(told, 1e10, 8, "cpt")["seconds"] == longest
    assert shared["seconds"] == pytest.approx(math.fsum(one["seconds"] + one["copying"] for one in shared["parts"]))
    assert shared["cost"] == pytest.approx(math.fsum(one["cost"] for one in shared["parts"]))
    few = row(grown("resources.steps.data_curation.cpu=1"), 1e10, 512)
    assert (few["bottleneck"], few["takes_over"]) == ("cores of data_curation", "Ray")


def test_what_is_not_told_is_not_made_up():
    told = grown(price=None, tokens={"sft": 0})
    assert part(told, 1e10, 8, "sft")["seconds"] is row(told, 1e10, 8)["seconds"] is row(told, 1e10, 8)["cost"] is None
    assert "- sft: stages before it make its tokens; give them with --tokens sft=NUMBER." in scaling.described(told)
    recipe = launch.load(str(ROOT / scaling.RECIPE), prepare=False)
    with pytest.raises(ConfigError, match="--tokens cpt: with --scale it reads all of the text"):
        grown(tokens={"cpt": 1e9})
    slow = cards.Card("this machine's memory", 8e9, 0, 0, is_gpu=False)
    with pytest.raises(ConfigError, match="--scale: how fast this machine's memory is, is not known"):
        scaling.of_recipe(recipe, slow, tokens={}, utilisation=0.4, price=None)
