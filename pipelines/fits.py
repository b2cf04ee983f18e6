"""Whether what is planned of a recipe's stages fits the tasks, and the card, that its `resources` give them."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import ConfigError, DataError, ModelError, ServiceError
from bloomery.components.core.modelling import cards, fixes, plan
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.pipelines import planned, steps
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)

GIB = 2**30


def check(recipe: Recipe) -> None:
    """Hold the planned memory of each stage, and of evaluation, against that of its task and of `resources.card`.

    Nothing is fetched: where the base model's config.json is not on this machine, or tells too little, nothing is
    planned, and the log says so.
    Raises: ConfigError with a line for each that does not fit: the stage, what is planned, what there is, and the
            cheapest change.
    """
    try:
        problems = list(_problems(_at_hand(recipe)))
    except (ModelError, DataError, ServiceError) as error:
        logger.info("memory is not planned: %s", error)
        return
    if problems:
        raise ConfigError("\n".join(problems))


def _at_hand(recipe: Recipe) -> Recipe:
    """The recipe with a folder as base model: of a model on a hub that of the hub's cache, if it was fetched before."""
    if Path(recipe.base_model).is_dir():
        return recipe
    from huggingface_hub import try_to_load_from_cache

    file = None
    with contextlib.suppress(ValueError):  # no name of a hub
        file = try_to_load_from_cache(recipe.base_model, "config.json", revision=recipe.revision)
    if not isinstance(file, str):
        raise ModelError(f"base_model: the config.json of {recipe.base_model} is not on this machine")
    return recipe.model_copy(update={"base_model": str(Path(file).parent)})


def _problems(recipe: Recipe) -> Iterator[str]:
    """A line for each stage, and each memory, that what is planned does not fit."""
    resources = recipe.resources
    card = cards.named(resources.card) if resources.card else Card("its card", math.inf, 0, 0)
    trainings = {stage.name: 1.0 for stage in recipe.stages if isinstance(stage.config, TrainingConfig)}
    evaluation = steps.find("evaluation")

    @functools.cache
    def plan_on(device: Card) -> dict[str, Any]:
        return planned.of_recipe(recipe, device, tokens=trainings, utilisation=plan.UTILISATION, price=None)

    tasks = [(stage.name, stage.step, stage.declared.accelerator) for stage in recipe.stages]
    for name, step, accelerated in (*tasks, ("evaluation", "evaluation", evaluation.accelerator)):
        number = resources.given(step, accelerated)
        room = resources.room(step, number)[1]
        device = card if number else Card("its task", room, 0, 0, is_gpu=False)
        one = _planned(plan_on(device), name)
        if one is None:
            continue
        memory = f"resources.steps.{step}.memory"
        if number and one["peak_bytes"] > card.memory_bytes:
            yield _line(name, one["peak_bytes"], f"{card.name} (resources.card)", card.memory_bytes, [_fix(one)])
        elif one["peak_bytes"] > device.memory_bytes:
            # Where there is more, weights may be trained in 32 bits that had 16.
            most = _planned(plan_on(replace(device, memory_bytes=math.inf)), name)
            more = f"{memory}: {_gibibytes((most or one)['peak_bytes'])}"
            yield _line(name, one["peak_bytes"], "its task", device.memory_bytes, [more, _fix(one)])
        if number and one.get("host_bytes", 0) > room:
            where = f"its task, beside {'its card' if number == 1 else f'{number} cards'},"
            yield _line(name, one["host_bytes"], where, room, [f"{memory}: {_gibibytes(one['host_bytes'])}"])


def _planned(told: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """What is planned of a stage, or of evaluation; None: nothing."""
    if name == "evaluation":
        return told["answers"]  # type: ignore[no-any-return]
    return next((one for one in (*told["stages"], *told["surgery"]) if one["stage"] == name), None)


def _fix(one: Mapping[str, Any]) -> str:
    fix = one.get("fix")
    return f"{fixes.as_settings(fix['settings'])} ({fix['peak_bytes'] / 1e9:.1f} GB)" if fix else ""


def _line(name: str, need: float, where: str, room: float, changes: list[str]) -> str:
    told = f"{name}: {need / 1e9:.1f} GB of memory are planned, and {where} has {room / 1e9:.1f}"
    return f"{told}; cheapest change: {' or '.join(filter(None, changes)) or 'none is known'}"


def _gibibytes(need: float) -> str:
    """The Kubernetes quantity of a memory that has room for `need` bytes and the error of a plan."""
    return f"{math.ceil(need / plan.ROOM / GIB)}Gi"
