"""The plan of a recipe: what each stage takes on a card, by the model's config.json and the rows that are here."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bloomery.components.core import uploads
from bloomery.components.core.errors import BloomeryError, ConfigError, ModelError, ServiceError
from bloomery.components.core.modelling import generation, likelihood, plan, shapes
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.plan import Need, Training
from bloomery.components.core.modelling.shapes import Shape
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.pipelines.recipe import Recipe

CHARACTERS_PER_TOKEN = 4.0
"""Where the model's tokenizer is not there to be asked: English of most tokenizers."""
SAMPLE = 200
"""Texts by which the model's tokenizer is asked how long its tokens are."""
READS = {"document/2": "documents", "chat/2": "chats", "preference/2": "preferences"}


def of_recipe(
    recipe: Recipe, card: Card, *, tokens: Mapping[str, float], utilisation: float, price: float | None
) -> dict[str, Any]:
    """What `recipe` takes of one `card`, stage by stage, as `bloomery plan --json` prints it.

    `tokens` are those of an epoch of stages by name, where they are told and not counted; `price` is what a card costs
    an hour. Raises: ModelError if the base model's config.json is not to be had or tells too little.
    """
    folder = folder_of(recipe)
    shape = shapes.read(folder)
    trainings = {stage.name: stage.config for stage in recipe.stages if isinstance(stage.config, TrainingConfig)}
    unknown = sorted(set(tokens) - set(trainings))
    if unknown:
        raise ConfigError(f"--tokens {unknown[0]}: no stage of this name trains; known: {', '.join(trainings)}")
    counted = _counted(recipe, folder)
    told = []
    for stage in recipe.stages:
        if isinstance(stage.config, TrainingConfig):
            read = next((READS[schema] for schema in stage.declared.reads.values() if schema in READS), "")
            number = tokens.get(stage.name) or counted.get(read, (0, 0.0))[1]
            rows = counted.get(read, (0, 0.0))[0] if stage.name not in tokens else 0
            length = min(number / rows, stage.config.max_length) if rows and read == "chats" else None
            told.append(_stage(stage.name, stage.config, shape, card, number, length, utilisation, price))
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
        "stages": told,
        "answers": _answers(recipe, shape, card),
        "rules": plan.rules(shape),
    }


def folder_of(recipe: Recipe) -> Path:
    """The folder with the base model's config.json: of one on a hub or store that file alone is fetched.

    Raises: ModelError if there is none, ServiceError if the hub does not give it.
    """
    name = recipe.base_model
    if Path(name).is_dir():
        return Path(name)
    if "://" in name:
        return uploads.fetched(f"{name.rstrip('/')}/config.json").parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        demo = "; that of a demo is made by its first `bloomery run`" if name.startswith("/") else ""
        raise ModelError(f"base_model: no folder {name}; give one with config.json by --set base_model=FOLDER{demo}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json", revision=recipe.revision)).parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ServiceError(
            f"base_model: no folder {name} here, and the hub did not give its config.json "
            f"({str(error).splitlines()[0][:150]}); give a folder that holds it by --set base_model=FOLDER"
        ) from None


def _stage(
    name: str,
    config: TrainingConfig,
    shape: Shape,
    card: Card,
    tokens: float,
    length: float | None,
    utilisation: float,
    price: float | None,
) -> dict[str, Any]:
    training = Training.of(config)
    need = plan.of_training(shape, training, card)
    fits = need.peak <= card.memory_bytes
    fix = None if fits else plan.cheapest_fix(shape, training, card)
    operations = plan.flops(shape, training, tokens * config.epochs, length=length)
    seconds = operations / (card.flops * utilisation) if card.flops else None
    return {
        "stage": name,
        "trained": need.trained,
        "parameters": shape.parameters,
        "dtype": need.dtype,
        "optimizer": config.optimizer,
        "adapter": config.adapter.kind if config.adapter else None,
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": config.max_length,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bytes": need.parts,
        "peak_bytes": need.peak,
        "peak_at": need.moment,
        "fits": fits,
        "fix": {"settings": fix[0], "peak_bytes": fix[2].peak} if fix else None,
        "epochs": config.epochs,
        "tokens": tokens or None,
        "flops": operations if tokens else None,
        "seconds": seconds if tokens else None,
        "cost": seconds / 3600 * price if tokens and seconds is not None and price is not None else None,
        "rules": plan.rules(shape, training),
    }


def _answers(recipe: Recipe, shape: Shape, card: Card) -> dict[str, Any]:
    """What evaluation and every step that samples take, for their largest batch."""
    most = max((task.max_new_tokens for task in recipe.tasks.values()), default=1)
    length = min(2 * most, shape.context or 2 * most)
    rows = max(1, likelihood.LOGIT_BYTES // (4 * shape.vocabulary))
    sequences = max(1, min(rows, generation.MAX_BATCH_TOKENS // length))
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


def _counted(recipe: Recipe, folder: Path) -> dict[str, tuple[int, float]]:
    """(rows, tokens of an epoch) of the documents, chats and preferences that the recipe's files hold, as they are."""
    from bloomery.pipelines.cli_check import own_chats, training_chats

    found: dict[str, tuple[int, float]] = {}
    with contextlib.suppress(BloomeryError):
        chats = [_text(messages) for messages, _ in (*training_chats(recipe.tasks), *own_chats(recipe.chats))]
        found["chats"] = _measured(chats, folder)
    with contextlib.suppress(BloomeryError):
        pairs = [str(row) for row in _raw(recipe.preferences)]
        found["preferences"] = _measured(pairs, folder)
    size = sum(Path(file).stat().st_size for file in _files(recipe))
    found["documents"] = (0, size / CHARACTERS_PER_TOKEN)
    return found


def _text(messages: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"{turn['role']} {turn.get('content') or ''}" for turn in messages)


def _raw(sources: Iterable[Any]) -> Iterable[Any]:
    from bloomery.components.core.data.tables import rows_of

    return (row.value for source in sources for row in rows_of(source) if row.value is not None)


def _files(recipe: Recipe) -> list[str]:
    from bloomery.components.core.data.tables import list_files
    from bloomery.components.data_curation.config import DataCurationConfig

    found: list[str] = []
    for stage in recipe.stages:
        for source in stage.config.sources if isinstance(stage.config, DataCurationConfig) else ():
            if "://" not in source.path:
                with contextlib.suppress(BloomeryError):
                    found += list_files(source.path)
    return found


def _measured(texts: list[str], folder: Path) -> tuple[int, float]:
    """How many texts, and their tokens by those of the first ones."""
    characters = sum(map(len, texts))
    sample = list(itertools.islice(texts, 0, None, max(1, len(texts) // SAMPLE)))
    ratio = CHARACTERS_PER_TOKEN
    if sample and (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ratio = sum(map(len, sample)) / max(1, sum(len(tokenizer.encode(text).ids) for text in sample))
    return len(texts), characters / ratio


def described(told: Mapping[str, Any]) -> str:
    """The plan in words and numbers, for a terminal."""
    model, card = told["model"], told["card"]
    lines = [
        f"{told['recipe']}: {_short(model['parameters'])} parameters ({model['kind']}, {model['attention']} "
        f"attention), {_gigabytes(model['bytes'])} as stored",
        f"on {card['name']}: {_gigabytes(card['memory_bytes'])}"
        + (f", {card['flops'] / 1e12:,.0f} TFLOP/s at {card['utilisation']:.0%}" if card["flops"] else ""),
    ]
    for stage in told["stages"]:
        lines += ["", *_described_stage(stage, card)]
    answers = told["answers"]
    lines += [
        "",
        f"answers: {answers['sequences']} at once of {answers['length']} tokens: {_verdict(answers, card)}",
        f"  {_parts(answers['bytes'])}",
    ]
    if answers["tokens_per_second_at_most"]:
        lines.append(f"  at most {answers['tokens_per_second_at_most']:,.0f} tokens a second (bandwidth)")
    lines += [f"  rule {name}: {_gigabytes(value)}" for name, value in told["rules"].items()]
    return "\n".join(lines)


def _described_stage(stage: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    how = stage["adapter"] or "full"
    lines = [
        f"{stage['stage']}: {how}, {_short(stage['trained'])} of {_short(stage['parameters'])} parameters in "
        f"{stage['dtype']}, {stage['optimizer']}, {stage['batch_size']} x {stage['max_length']} tokens"
        f"{', checkpointing' if stage['gradient_checkpointing'] else ''}: {_verdict(stage, card)}",
        f"  {_parts(stage['bytes'])}",
        f"  most at: {stage['peak_at']}",
    ]
    if not stage["fits"]:
        fix = stage["fix"]
        told = f"{plan.as_settings(fix['settings'])} ({_gigabytes(fix['peak_bytes'])})" if fix else "none is known"
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
