"""The plan of a recipe: what each stage takes on a card, by the model's config.json and the rows that are here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bloomery.components.core import uploads
from bloomery.components.core.errors import ConfigError, ModelError, ServiceError
from bloomery.components.core.modelling import fixes, generation, likelihood, plan, reshaping, shapes
from bloomery.components.core.modelling.calibration import CALIBRATION_TOKENS
from bloomery.components.core.modelling.cards import Card, seconds_of
from bloomery.components.core.modelling.plan import Need, Training
from bloomery.components.core.modelling.reshaping import Followed
from bloomery.components.core.modelling.shapes import Shape
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.components.nas.config import NasConfig
from bloomery.components.pruning.config import PruningConfig
from bloomery.pipelines.chain import Stage
from bloomery.pipelines.counted import of_files
from bloomery.pipelines.recipe import Recipe

READS = {"document/2": "documents", "chat/2": "chats", "preference/3": "preferences"}


def of_recipe(
    recipe: Recipe, card: Card, *, tokens: Mapping[str, float], utilisation: float, price: float | None
) -> dict[str, Any]:
    """What `recipe` takes of one `card`, stage by stage, as `bloomery plan --json` prints it.

    `tokens` are those of an epoch of stages by name, where they are told and not counted; `price` is what a card costs
    an hour. Raises: ModelError if the base model's config.json is not to be had or tells too little.
    """
    folder = folder_of("base_model", recipe.base_model, recipe.revision)
    shape = shapes.read(folder)
    trainings = {stage.name: stage.config for stage in recipe.stages if isinstance(stage.config, TrainingConfig)}
    unknown = sorted(set(tokens) - set(trainings))
    if unknown:
        raise ConfigError(f"--tokens {unknown[0]}: no stage of this name trains; known: {', '.join(trainings)}")
    counted = of_files(recipe, folder) if set(trainings) - set(tokens) else {}
    told = []
    surgery: list[dict[str, Any]] = []
    for stage, given, made in _reshaped(recipe, folder, shape):
        if isinstance(stage.config, PruningConfig | NasConfig):
            surgery.append(_smaller(recipe, stage.name, stage.config, given, made, card, utilisation, price))
        if isinstance(stage.config, TrainingConfig):
            read = next((READS[schema] for schema in stage.declared.reads.values() if schema in READS), "")
            number = tokens.get(stage.name) or counted.get(read, (0, 0.0))[1]
            rows = counted.get(read, (0, 0.0))[0] if stage.name not in tokens else 0
            length = min(number / rows, stage.config.max_length) if rows and read == "chats" else None
            told.append(_stage(recipe, stage, stage.config, given, card, number, length, utilisation, price))
    planned = {one["stage"] for one in (*told, *surgery)}
    return {
        "recipe": recipe.name,
        "model": {
            "path": str(folder),
            "kind": shape.kind,
            "parameters": shape.parameters,
            "bytes": shape.parameters * shape.own_bytes,
            "attention": "eager" if shape.eager else "sdpa",
            "context": shape.context,
        },
        "card": {
            "name": card.name,
            "memory_bytes": card.memory_bytes,
            "flops": card.flops,
            "bandwidth": card.bandwidth,
            "utilisation": utilisation,
            "price_per_hour": price,
        },
        "order": [stage.name for stage in recipe.stages],
        "stages": told,
        "surgery": surgery,
        "not_planned": {stage.name: _why_not(stage) for stage in recipe.stages if stage.name not in planned},
        "answers": _answers(recipe, shape, card),
        "rules": plan.rules(shape),
    }


def _reshaped(recipe: Recipe, folder: Path, shape: Shape) -> Iterator[tuple[Stage, Shape, Shape]]:
    """Every stage with the shape of the model that it reads and of the one that it leaves, as far as it has any.

    Raises: as preflight, for a shape that cannot be.
    """
    start = reshaping.opened(folder) if (reshapings := recipe.reshapings()) else None
    course: dict[str, tuple[Followed, Followed]] = {}
    if start:
        # Whether a teacher has the same tokens is preflight's to say: here its tokenizer may not be.
        stages = [one.model_copy(update={"teacher": None}) for one in reshapings]
        course, problems = reshaping.followed(
            stages, start, lambda named: reshaping.opened(folder_of("stages", named.model, named.revision))
        )
        if problems:
            raise type(problems[0])("\n".join(map(str, problems)))
    known = {id(start): shape}
    newest = shape
    for stage in recipe.stages:
        shapes_of = []
        for model in course.get(stage.name, ()):
            if id(model) not in known:
                heads = {name: (one.dtype, one.shape) for name, one in model.tensors.items()}
                known[id(model)] = shapes.of(model.tokens, model.config.to_dict(), heads)
            shapes_of.append(known[id(model)])
        yield stage, *(shapes_of or [newest, newest])
        newest = shapes_of[1] if shapes_of else newest


def _smaller(
    recipe: Recipe,
    name: str,
    config: PruningConfig | NasConfig,
    given: Shape,
    made: Shape,
    card: Card,
    utilisation: float,
    price: float | None,
) -> dict[str, Any]:
    """What it takes to make a model smaller: to observe it, and for a search to ask sub-networks beside it."""
    backwards = config.importance == "taylor"
    is_observed = isinstance(config, NasConfig) or bool(config.needed_inputs)
    length = min(CALIBRATION_TOKENS, given.context or CALIBRATION_TOKENS) if is_observed else 1
    need = plan.of_observation(given, card, length=length, backwards=backwards)
    operations = float(config.calibration_chats * length * given.active * (6 if backwards else 2) * is_observed)
    if isinstance(config, NasConfig):
        sequences, tokens = _at_once(recipe, made)
        asked = plan.of_generation(made, card, sequences=min(sequences, config.validation_rows), length=tokens)
        beside = {**asked.parts, "weights": need.parts["weights"], "sub-network": asked.parts["weights"]}
        if (peak := sum(beside.values())) > need.peak:
            need = Need(beside, peak, "answers of a sub-network", 0, "")
        judged = config.population * (config.generations + 1)
        operations += 2.0 * judged * config.validation_rows * tokens * made.active
    seconds = seconds_of(operations, card, utilisation) if operations else None
    return {
        "stage": name,
        "parameters": given.parameters,
        "parameters_after": made.parameters,
        "bytes": need.parts,
        "peak_bytes": need.peak,
        "peak_at": need.moment,
        "fits": need.peak <= card.memory_bytes,
        "flops": operations or None,
        "seconds": seconds,
        "cost": seconds / 3600 * price if seconds is not None and price is not None else None,
    }


def _why_not(stage: Stage) -> str:
    """Why nothing is planned of a stage."""
    if not stage.declared.accelerator:
        return "it trains and asks no model"
    return "it trains nothing; what it takes to answer is told under answers"


def folder_of(key: str, name: str, revision: str) -> Path:
    """The folder with the config.json of the model `name`, which `key` of the recipe names: of a model on a hub or
    store that file alone is fetched.

    Raises: ModelError if there is none, ServiceError if the hub does not give it.
    """
    if Path(name).is_dir():
        return Path(name)
    if "://" in name:
        return uploads.fetched(f"{name.rstrip('/')}/config.json").parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        demo = "; that of a demo is made by its first `bloomery run`" if name.startswith("/") else ""
        set_it = f"by --set base_model=FOLDER{demo}" if key == "base_model" else "in its place"
        raise ModelError(f"{key}: no folder {name}; give one with config.json {set_it}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ServiceError(
            f"{key}: no folder {name} here, and the hub did not give its config.json "
            f"({str(error).splitlines()[0][:150]}); give a folder that holds it"
        ) from None


def _stage(
    recipe: Recipe,
    stage: Stage,
    config: TrainingConfig,
    shape: Shape,
    card: Card,
    tokens: float,
    length: float | None,
    utilisation: float,
    price: float | None,
) -> dict[str, Any]:
    training, cards = Training.of(config, recipe.shards(stage)), recipe.shared_by(stage)
    given = recipe.resources.given(stage.step, stage.declared.accelerator)
    need = plan.of_training(shape, training, card)
    fix = None if need.peak <= card.memory_bytes else fixes.cheapest(shape, training, card, cards=cards)
    operations = plan.flops(shape, training, tokens, epochs=config.epochs, length=length)
    seconds = seconds_of(operations, card, utilisation, cards)
    return {
        "stage": stage.name,
        "trained": need.trained,
        "parameters": shape.parameters,
        "dtype": need.dtype,
        "optimizer": config.optimizer,
        "accelerators": cards,
        "sharded": training.shards is not None,
        "adapter": config.adapter.kind if config.adapter else None,
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": config.max_length,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bytes": need.parts,
        "peak_bytes": need.peak,
        "peak_at": need.moment,
        "host_bytes": plan.of_host(shape, training, card, given),
        "fits": need.peak <= card.memory_bytes,
        "fix": {"settings": fix[0], "peak_bytes": fix[2].peak} if fix else None,
        "epochs": config.epochs,
        "tokens": tokens or None,
        "flops": operations if tokens else None,
        "seconds": seconds if tokens else None,
        "cost": seconds / 3600 * price * cards if tokens and seconds is not None and price is not None else None,
        "rules": plan.rules(shape, training),
    }


def _answers(recipe: Recipe, shape: Shape, card: Card) -> dict[str, Any]:
    """What evaluation and every step that samples take, for their largest batch."""
    sequences, length = _at_once(recipe, shape)
    need: Need = plan.of_generation(shape, card, sequences=sequences, length=length)
    step = need.parts["weights"] + need.parts["kv cache"]
    return {
        "sequences": sequences,
        "length": length,
        "bytes": need.parts,
        "peak_bytes": need.peak,
        "fits": need.peak <= card.memory_bytes,
        "tokens_per_second_at_most": sequences * card.bandwidth / step if card.bandwidth else None,
    }


def _at_once(recipe: Recipe, shape: Shape) -> tuple[int, int]:
    """(sequences of the largest batch of answers, tokens of each with its prompt)."""
    most = max((task.max_new_tokens for task in recipe.tasks.values()), default=1)
    length = min(2 * most, shape.context or 2 * most)
    return max(1, min(likelihood.LOGIT_BYTES // (4 * shape.vocabulary), generation.MAX_BATCH_TOKENS // length)), length


def described(told: Mapping[str, Any]) -> str:
    """The plan in words and numbers, for a terminal."""
    model, card = told["model"], told["card"]
    lines = [
        f"{told['recipe']}: {_short(model['parameters'])} parameters ({model['kind']}, {model['attention']} "
        f"attention), {_gigabytes(model['bytes'])} as stored",
        f"on {card['name']}: {_gigabytes(card['memory_bytes'])}"
        + (f", {card['flops'] / 1e12:,.0f} TFLOP/s at {card['utilisation']:.0%}" if card["flops"] else ""),
    ]
    parts = {one["stage"]: _described_stage(one, card) for one in told["stages"]}
    parts |= {one["stage"]: _described_surgery(one, card) for one in told["surgery"]}
    for name in filter(parts.__contains__, told["order"]):
        lines += ["", *parts[name]]
    answers = told["answers"]
    lines += [
        "",
        f"answers: {answers['sequences']} at once of {answers['length']} tokens: {_verdict(answers, card)}",
        f"  {_parts(answers['bytes'])}",
    ]
    if answers["tokens_per_second_at_most"]:
        lines.append(f"  at most {answers['tokens_per_second_at_most']:,.0f} tokens a second (bandwidth)")
    lines += [f"  rule {name}: {_gigabytes(value)}" for name, value in told["rules"].items()]
    lines += ["", *(f"not planned: {name}: {why}" for name, why in told["not_planned"].items())]
    return "\n".join(lines)


def _described_stage(stage: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    how = stage["adapter"] or "full"
    lines = [
        f"{stage['stage']}: {how}, {_short(stage['trained'])} of {_short(stage['parameters'])} parameters in "
        f"{stage['dtype']}, {stage['optimizer']}, {stage['batch_size']} x {stage['max_length']} tokens"
        f"{', checkpointing' if stage['gradient_checkpointing'] else ''}{_shared(stage)}: {_verdict(stage, card)}",
        f"  {_parts(stage['bytes'])}",
        f"  most at: {stage['peak_at']}",
    ]
    if not stage["fits"]:
        fix = stage["fix"]
        told = f"{fixes.as_settings(fix['settings'])} ({_gigabytes(fix['peak_bytes'])})" if fix else "none is known"
        lines.append(f"  cheapest change that fits: {told}")
    if stage["dtype"] == "bf16" and not stage["adapter"]:
        lines.append("  weights and moments in 16 bits: most steps of a small learning rate are rounded away")
    if stage["tokens"]:
        done = f"  {_short(stage['tokens'])} tokens x {stage['epochs']:g} epochs, {stage['flops']:.2g} FLOP"
        done += f", {_time(stage['seconds'])}" if stage["seconds"] is not None else ", time not known"
        lines.append(done + (f", {stage['cost']:,.2f}" if stage["cost"] is not None else ""))
    else:
        lines.append(f"  tokens are made by the stages before it; give them with --tokens {stage['stage']}=NUMBER")
    return lines + [f"  rule {name}: {_gigabytes(value)}" for name, value in stage["rules"].items() if "AdamW" in name]


def _shared(stage: Mapping[str, Any]) -> str:
    if stage["accelerators"] == 1:
        return ""
    return f", {stage['accelerators']} cards that each hold {'a part' if stage['sharded'] else 'all'} of it"

def _described_surgery(one: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{one['stage']}: {_short(one['parameters'])} parameters to {_short(one['parameters_after'])} at most, without "
        f"training: {_verdict(one, card)}",
        f"  {_parts(one['bytes'])}",
        f"  most at: {one['peak_at']}",
    ]
    if one["flops"]:
        done = f"  {one['flops']:.2g} FLOP at most"
        done += f", {_time(one['seconds'])}" if one["seconds"] is not None else ", time not known"
        lines.append(done + (f", {one['cost']:,.2f}" if one["cost"] is not None else ""))
    return lines


def _verdict(part: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    near = part["peak_bytes"] > plan.ROOM * card["memory_bytes"]
    word = "DOES NOT FIT" if not part["fits"] else "fits, but for the error of a plan" if near else "fits"
    return f"{_gigabytes(part['peak_bytes'])}, {word}"


def _parts(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_gigabytes(value)}" for name, value in parts.items())


def _gigabytes(count: float) -> str:
    if math.isinf(count):
        return "no limit that is told"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _short(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
