"""How a recipe's chain grows: from a billion to ten trillion tokens of text, on 1 to 512 cards.

What a training takes is what `planned.of_recipe` says of it at each number of cards. What its data take follows from
`scaling_constants.py`, each measured here or taken from a source, and from what the recipe gives the tasks. `bloomery
plan --scale` prints it; infra/SCALING.md holds it for a model of 8 billion parameters, and is written by
`python -m bloomery.pipelines.scaling`; a test keeps it true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bloomery.components.core import s3
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import cards, fixes, plan, shapes
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.pipelines import counted, planned
from bloomery.pipelines.chain import Stage
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.scaling_constants import (
    AFTER,
    CONNECTION,
    CONSTANTS,
    CORE_PRICE,
    DISK,
    DOCUMENT,
    ENGINES,
    HELD,
    KEEPING,
    NODE,
    NOT_MEASURED,
    NOTHING,
    RATES,
    RAY,
    STORED,
    TOKENISING,
    of_card,
)

SIZES = (1e9, 1e10, 1e11, 1e12, 1e13)
"""Tokens of the text that comes in."""
NUMBERS = (1, 8, 64, 512)
"""Cards that share each training."""


@dataclass(frozen=True)
class Part:
    """One piece of the chain's work, at one size and number of cards."""

    name: str
    busy: str
    """What its seconds are of: cores or cards."""
    seconds: float | None
    """Of work; None: its tokens are not told."""
    copying: float
    """Seconds in which bytes come from the store and go there, before, between and after."""
    traffic: float
    """Bytes that cross the store's door, either way."""
    kept: float
    """Bytes that lie on the store afterwards."""
    rate: float | None
    """What an hour of its task costs."""
    after: str
    """What takes over where its work is the bottleneck."""
    after_copies: str = NOTHING
    """The same for its copies."""
    limit: str = ""
    """Why it does not run; empty: it does."""
    after_limit: str = NOTHING
    note: str = ""

    @property
    def cost(self) -> float | None:
        """In the currency of its rate, with a month of what is kept."""
        if self.rate is None or self.seconds is None:
            return None
        return (self.seconds + self.copying) / 3600 * self.rate + self.kept / 1e9 * KEEPING.value


def of_recipe(
    recipe: Recipe, card: Card, *, tokens: Mapping[str, float], utilisation: float, price: float | None
) -> dict[str, Any]:
    """What each step of `recipe` takes at SIZES on NUMBERS of `card`, as `bloomery plan --scale --json` prints it.

    `tokens` are those of an epoch of trainings whose data do not grow with the text; `price` is what a card costs an
    hour. Raises: ConfigError if the card's speed is not known; else as `planned.of_recipe`.
    """
    if not card.flops:
        raise ConfigError(f"--scale: how fast {card.name} is, is not known; give --gpu a name, such as H100")
    grows = [stage.name for stage in recipe.stages if _grows(stage) and stage.step not in RATES]
    if named := [name for name in grows if name in tokens]:
        raise ConfigError(f"--tokens {named[0]}: with --scale it reads all of the text, of whatever size; leave it out")
    if not any(stage.step in RATES or isinstance(stage.config, TrainingConfig) for stage in recipe.stages):
        raise ConfigError(f"--scale: no stage of {recipe.name} trains, or goes through text; leave --scale out")
    shape = shapes.read(planned.folder_of("base_model", recipe.base_model, recipe.revision))
    cores = {stage.name: recipe.resources.room(stage.step, 0)[0] for stage in recipe.stages if stage.step in RATES}
    rows, told = [], {}
    for number in NUMBERS:
        shared = _shared_by(recipe, number)
        given = {**tokens, **dict.fromkeys(grows, SIZES[0])}
        told = planned.of_recipe(shared, card, tokens=given, utilisation=utilisation, price=price)
        for size in SIZES:
            parts = list(_parts(shared, told, shape.vocabulary, size, number, price))
            rows.append(_row(parts, size, number))
    return {
        "recipe": recipe.name,
        "model": told["model"],
        "card": told["card"],
        "cores": cores,
        "rows": sorted(rows, key=lambda row: (row["tokens"], row["cards"])),
        "constants": [asdict(constant) for constant in (*CONSTANTS, *of_card(told["card"]))],
        "not_planned": {name: why for name, why in told["not_planned"].items() if name not in cores},
        "not_measured": list(NOT_MEASURED),
    }


def _grows(stage: Stage) -> bool:
    """Whether what a stage goes through grows with the text."""
    return stage.step in RATES or (
        isinstance(stage.config, TrainingConfig) and "document/2" in stage.declared.reads.values()
    )


def _shared_by(recipe: Recipe, number: int) -> Recipe:
    """The recipe with so many cards, on nodes of `cards.NODE`, for every training that several can share."""
    resources, shared = recipe.resources, {"accelerators": None, "nodes": None}
    changes = {
        "accelerator": resources.accelerator or "nvidia.com/gpu",
        "accelerators": min(number, cards.NODE),
        "nodes": max(1, number // cards.NODE),
        "steps": {name: own.model_copy(update=shared) for name, own in resources.steps.items()},
    }
    return recipe.model_copy(update={"resources": resources.model_copy(update=changes)})


def _parts(
    recipe: Recipe, told: Mapping[str, Any], vocabulary: int, size: float, number: int, price: float | None
) -> Iterator[Part]:
    """The pieces of the chain in its order."""
    trainings = {one["stage"]: one for one in told["stages"]}
    for stage in recipe.stages:
        if stage.step in RATES:
            yield _of_data(recipe, stage, size)
        elif one := trainings.get(stage.name):
            if _grows(stage):
                yield _of_tokenising(recipe, stage, one, vocabulary, size, price)
            growth = size / SIZES[0] if _grows(stage) else 1.0
            yield _of_training(stage, one, told["model"]["bytes"], told["card"]["memory_bytes"], growth, number, price)


def _of_data(recipe: Recipe, stage: Stage, size: float) -> Part:
    """A step that goes through all text: sources come as they are, documents as they are stored."""
    cores, memory = recipe.resources.room(stage.step, 0)
    text = size * counted.CHARACTERS_PER_TOKEN
    stored = text * STORED.value
    reads_sources = "source/1" in stage.declared.reads.values()
    comes = text if reads_sources else stored
    held = text / DOCUMENT.value * HELD.value if stage.step == "dedup" else 0.0
    limit = ""
    if (disk := comes + stored) > DISK.value:  # of sources a copy lies between the two passes
        limit = f"disk of {stage.name}: {_bytes(disk)} of {_bytes(DISK.value)}"
    elif held > memory:
        limit = f"memory of {stage.name}: {_bytes(held)} of {_bytes(memory)}"
    return Part(
        name=stage.name,
        busy="cores",
        seconds=text / DOCUMENT.value / (RATES[stage.step].value * cores),
        copying=(comes + stored) / CONNECTION.value + stored / (s3.THREADS * CONNECTION.value),
        traffic=comes + 2 * stored,
        kept=2 * stored,
        rate=cores * CORE_PRICE.value,
        after=RAY,
        limit=limit,
    )


def _of_tokenising(
    recipe: Recipe, stage: Stage, one: Mapping[str, Any], vocabulary: int, size: float, price: float | None
) -> Part:
    """The text's way into a training: fetched as documents, cut into tokens by a node's cores, while all cards wait."""
    number = one["accelerators"]
    cores, _ = recipe.resources.room(stage.step, min(number, cards.NODE))
    stored = size * counted.CHARACTERS_PER_TOKEN * STORED.value
    ids = size * (2 if vocabulary <= 2**16 else 4)
    disk = stored + ids
    return Part(
        name=f"{stage.name}: tokenising",
        busy="cores",
        seconds=size / (TOKENISING.value * cores),
        copying=stored / CONNECTION.value + ids / (s3.THREADS * CONNECTION.value),
        traffic=stored + ids,
        kept=ids,
        rate=None if price is None else number * price,
        after=RAY,
        limit=f"disk of {stage.name}: {_bytes(disk)} of {_bytes(DISK.value)}" if disk > DISK.value else "",
    )


def _of_training(
    stage: Stage, one: Mapping[str, Any], model: float, memory: float, growth: float, number: int, price: float | None
) -> Part:
    """A training as it is planned; its model comes and goes, and it waits while a checkpoint is written."""
    seconds = None if one["seconds"] is None else one["seconds"] * growth
    checkpoint = 4.0 * one["trained"] * (1 + plan.STATES.get(one["optimizer"], 2.0))
    times = (seconds or 0) // (60 * stage.config.checkpoint.every_minutes)  # type: ignore[attr-defined]
    fix = one["fix"]
    limit = f"memory of a card in {stage.name}: {one['peak_bytes'] / 1e9:.2f} of {memory / 1e9:.2f} GB"
    return Part(
        name=stage.name,
        busy="cards",
        seconds=seconds,
        copying=2 * model / CONNECTION.value + (model + times * checkpoint) / (s3.THREADS * CONNECTION.value),
        traffic=3 * model + times * checkpoint,
        kept=2 * model,
        rate=None if price is None else one["accelerators"] * price,
        after=AFTER[number] if one["accelerators"] == number else NOTHING,
        after_copies="`checkpoint.every_minutes`" if times else NOTHING,
        limit="" if one["fits"] else limit,
        after_limit=NODE if number == 1 else f"`{fixes.as_settings(fix['settings'])}`" if fix else NOTHING,
        note=" in 16 bits" if one["dtype"] == "bf16" and not one["adapter"] else "",
    )


def _row(parts: list[Part], size: float, number: int) -> dict[str, Any]:
    """One size on one number of cards: its first limit in the chain's order, else what takes longest."""
    spans = [(part.seconds or 0.0, f"{part.busy} of {part.name}", part.after) for part in parts]
    spans += [(part.copying, f"copies of {part.name}", part.after_copies) for part in parts]
    _, bottleneck, after = max(spans, key=lambda span: span[0])
    limits = [(part.limit, part.after_limit) for part in parts if part.limit]
    if limits:
        bottleneck, after = limits[0]
    costs = [part.cost for part in parts]
    known = not limits and all(part.seconds is not None for part in parts)
    return {
        "tokens": size,
        "cards": number,
        "parts": [{**asdict(part), "cost": part.cost} for part in parts],
        "seconds": sum((part.seconds or 0.0) + part.copying for part in parts) if known else None,
        "traffic_bytes": sum(part.traffic for part in parts),
        "cost": sum(cost for cost in costs if cost is not None) if known and None not in costs else None,
        "bottleneck": bottleneck,
        "takes_over": after,
    }


def described(told: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    model, card, rows = told["model"], told["card"], told["rows"]
    names = [part["name"] for part in rows[0]["parts"]]
    cores = ", ".join(f"{name} on {count:g} cores" for name, count in told["cores"].items())
    price = "" if card["price_per_hour"] is None else f", {card['price_per_hour']:g} an hour"
    used = {row["takes_over"] for row in rows}
    lines = [
        f"{model['parameters'] / 1e9:.3g} B parameters ({model['kind']}); {counted.CHARACTERS_PER_TOKEN:g} bytes of "
        f"text a token; {cores or 'no step of data'}; {card['name']}: {card['flops'] / 1e12:,.0f} TFLOP/s at "
        f"{card['utilisation']:.0%}{price}. A time is that of work and copies.",
        "",
        *_table(
            ["tokens", "cards", *names, "all", "store traffic", "cost", "first bottleneck", "takes over"],
            [_told(row) for row in rows],
        ),
        "",
        *(f"- **{name}**: {what}." for name, what in ENGINES.items() if name in used),
        "",
        *_table(
            ["constant", "value", "unit", "source"],
            [[one["name"], f"{one['value']:,g}", one["unit"], one["source"]] for one in told["constants"]],
        ),
        "",
        "Not in the tables:",
        "",
        *(f"- {name}: {why}." for name, why in told["not_planned"].items()),
        *(
            f"- {part['name']}: stages before it make its tokens; give them with --tokens {part['name']}=NUMBER."
            for part in rows[0]["parts"]
            if part["seconds"] is None
        ),
        "- evaluation, quantisation and promotion: they do not grow with the text.",
        "",
        "Not measured:",
        "",
        *(f"- {line}" for line in told["not_measured"]),
    ]
    return "\n".join(lines)


def _told(row: Mapping[str, Any]) -> list[str]:
    spans = [
        "does not run" if part["limit"] else _span(part["seconds"] and part["seconds"] + part["copying"]) + part["note"]
        for part in row["parts"]
    ]
    cost = "–" if row["cost"] is None else f"{row['cost']:,.0f}"
    ends = [_span(row["seconds"]), _bytes(row["traffic_bytes"]), cost, row["bottleneck"], row["takes_over"]]
    return [_count(row["tokens"]), str(row["cards"]), *spans, *ends]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _count(number: float) -> str:
    return f"{number / 1e12:g} T" if number >= 1e12 else f"{number / 1e9:g} B"


def _bytes(number: float) -> str:
    size, unit = next((pair for pair in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")) if number >= pair[0]), (1e6, "MB"))
    return f"{number / size:.3g} {unit}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for size, unit, most in ((1, "s", 120), (60, "min", 120), (3600, "h", 72), (86400, "days", 1000)):
        if seconds < size * most:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / (365.25 * 86400):,.3g} years"


PAGE = Path(__file__).parents[1] / "infra" / "SCALING.md"
MARK = "<!-- What follows is written by `python -m bloomery.pipelines.scaling`. -->\n"
RECIPE, GPU, PRICE, TOKENS = "infra/scaling/recipe.yaml", "H100", 4.916, 100_000_000
"""What the page is made with."""


def page() -> str:
    """infra/SCALING.md: its own words, and after MARK the command and what it prints."""
    from bloomery.pipelines import launch

    recipe = launch.load(str(PAGE.parents[1] / RECIPE), prepare=False)
    given = {"tokens": {"sft": TOKENS}, "utilisation": plan.UTILISATION, "price": PRICE}
    told = of_recipe(recipe, cards.named(GPU), **given)
    command = f"    bloomery plan {RECIPE} --scale --gpu {GPU} --price {PRICE} --tokens sft={TOKENS}\n"
    own, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    return f"{own}{MARK}\n{command}\n{described(told)}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
