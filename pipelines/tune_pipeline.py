"""A search as one pipeline: the trials of a list that is known when it is compiled go through the recipe's chain side
by side, under `dsl.ParallelFor`, and the last task tells the best.

kfp reads the annotations of the pipeline function, so this module must not postpone them.
"""

import inspect
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.config import canonical, packed, parameters
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import named_models
from bloomery.components.core.modelling.named_models import START
from bloomery.pipelines import launch, tune
from bloomery.pipelines.chain import MODEL
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.tune import Search

FIXED = ("grid", "random")
"""Samplers whose trials are known before any of them has run."""


def settings_of(over: Sequence[Search], sampler: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """The settings of each trial, by key: the first `trials` of the grid, or so many that are drawn.

    Raises: ConfigError for a sampler that has to see results first, MissingExtraError without Optuna.
    """
    if sampler not in FIXED:
        raise ConfigError(
            f"--sampler {sampler}: chooses by the results of earlier trials, and those of a pipeline are known when it "
            f"is compiled; expected one of {', '.join(FIXED)}"
        )
    optuna = tune.optuna_quietly()
    chosen = tune.sampler_of(optuna, sampler, over, seed)  # type: ignore[arg-type]  # which refuses ranges in a grid
    if sampler == "grid":
        places = itertools.islice(itertools.product(*(each.choices for each in over)), trials)
        return [{each.key: value for each, value in zip(over, values, strict=True)} for values in places]
    study = optuna.create_study(sampler=chosen)
    drawn = (study.ask() for _ in range(trials))
    return [{each.key: each.suggest(trial) for each in over} for trial in drawn]


def build(
    recipe: str,
    settings: Sequence[str],
    over: Sequence[Search],
    *,
    trials: int,
    sampler: str,
    measure: str = "",
    maximise: bool = False,
    parallel: int = 4,
) -> tuple[Recipe, Any]:
    """(the recipe without the searched settings, the pipeline of the search): stages before the first that trials
    differ in run once, those from it to the measured one in every trial, `parallel` trials at a time. Nothing is
    evaluated or promoted.

    Raises: ConfigError as `tune.search`, and for keys that are no settings of stages, or that change the chain.
    """
    base, stage, metric = tune.checked(recipe, settings, over, measure, prepare=False)
    names = [one.name for one in base.stages]
    if outside := [each.key for each in over if each.key.partition(".")[0] not in names]:
        raise ConfigError(
            f"--over {outside[0]}: trials of a pipeline differ in the settings of stages ({', '.join(names)}); for "
            "other keys compile a search for each value, by --set"
        )
    found = []
    for number, chosen in enumerate(settings_of(over, sampler, trials, base.seed)):
        told = [tune.setting(key, value) for key, value in chosen.items()]
        found.append((number, chosen, launch.load(recipe, [*settings, *told], prepare=False)))
    return base, _pipeline(base, found, names.index(stage), f"{stage}/{metric}", maximise, parallel)


def _pipeline(
    base: Recipe,
    trials: Sequence[tuple[int, dict[str, Any], Recipe]],
    last: int,
    measure: str,
    maximise: bool,
    parallel: int,
) -> Any:
    from kfp import dsl

    from bloomery.infra.resources import place
    from bloomery.pipelines import tune_tasks
    from bloomery.pipelines.post_training import make_task

    stages = base.stages[: last + 1]
    for _, chosen, recipe in trials:
        for ours, theirs in zip(stages, recipe.stages, strict=False):
            if _wiring(ours) != _wiring(theirs):
                raise ConfigError(
                    f"--over {', '.join(chosen)}: changes what the stage {ours.name} reads or writes, and one pipeline "
                    "has one chain; compile a search for each, by --set"
                )
    configs = [
        {one.name: packed(parameters(one.config)) for one in recipe.stages[: last + 1]} for _, _, recipe in trials
    ]
    first = next(
        (index for index, one in enumerate(stages) if len({_text(each[one.name]) for each in configs}) > 1), last
    )
    before, within = stages[:first], stages[first:]
    given: dict[str, Any] = {"preflight": packed(parameters(base.preflight()))}
    given |= {one.name: packed(parameters(one.config)) for one in before}
    given["trials"] = [
        {"_number": number, "_settings": chosen, **{one.name: each[one.name] for one in within}}
        for (number, chosen, _), each in zip(trials, configs, strict=True)
    ]

    def search(*values: Any) -> None:
        told = dict(zip(given, values, strict=True))
        task = partial(make_task, base)
        checked = task("preflight", "preflight", told["preflight"])
        newest = {schema: checked[port] for port, schema in base.start().items()}
        models = {START: checked["start"]}

        def run(stage: Any, config: Any) -> dict[str, Any]:
            made = task(stage.step, stage.name, config, **stage.inputs(newest, models))
            newest.update({schema: made[port] for port, schema in stage.writes.items()})
            if MODEL in stage.writes.values():
                models[stage.name] = newest[MODEL]
            return made

        for one in before:
            run(one, told[one.name])
        with dsl.ParallelFor(told["trials"], parallelism=parallel) as trial:
            for one in within:
                made = run(one, getattr(trial, one.name))
            row = tune_tasks.told(trial=trial, measure=measure, metrics=made["metrics"])
            place(row, "tune", base.resources, accelerated=False, cached=True)
        best = tune_tasks.collected(name=base.name, measure=measure, maximise=maximise, rows=dsl.Collected(row.output))
        place(best, "tune", base.resources, accelerated=False, cached=True)

    parameters_of = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=type(value))
        for name, value in given.items()
    ]
    search.__signature__ = inspect.Signature(parameters_of)  # type: ignore[attr-defined]
    description = f"{len(trials)} trials of {base.name} for {measure}"
    return dsl.pipeline(name=f"{base.name}-search", description=description)(search)


def _wiring(stage: Any) -> list[Any]:
    named = named_models.stages(stage.config)
    return [stage.step, stage.name, stage.goes_on_from, sorted(stage.writes), sorted(stage.needs), named]


def _text(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True)


def row_of(trial: dict[str, Any], measure: str, metrics: str) -> dict[str, Any]:
    """What a trial came to, by the file of its measured stage's `metrics`. Raises: DataError without the measure."""
    stage, _, metric = measure.partition("/")
    found = {name.partition("/")[2]: value for name, value in json.loads(Path(metrics).read_text()).items()}
    if metric not in found:
        raise DataError(f"--measure {measure}: {stage} has {', '.join(sorted(found))}")
    return {"number": int(trial["_number"]), "settings": canonical(trial["_settings"]), "value": found[metric]}


def write_best(name: str, measure: str, maximise: bool, rows: list[dict[str, Any]], best: str, page: str) -> None:
    """Write the best of `rows` to the file `best`, as JSON, and the page about all of them to `page`."""
    ended = {"state": "complete", "seconds": 0.0, "error": ""}
    told = [
        {"number": int(row["number"]), "settings": canonical(row["settings"]), "value": row["value"], **ended}
        for row in sorted(rows, key=lambda row: row["number"])
    ]
    first = (max if maximise else min)(told, key=lambda row: row["value"])
    Path(best).parent.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(Path(best), json.dumps({"measure": measure, "best": first, "trials": told}))
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    tune.write_page(Path(page), name, measure, [Search(key) for key in first["settings"]], told, first)
