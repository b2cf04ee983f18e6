"""A search as one pipeline: its trials go through the recipe's chain side by side, under `dsl.ParallelFor`, and the
last task tells the best.

The trials of a grid, or those drawn at random, are known when it is compiled. Where a sampler chooses by what others
have come to, each trial asks the study, in a database that all pods reach, when its turn comes, and tells it what it
came to. A trial whose stage fails is told as failed, and the search goes on; what kills its pod ends the search.

kfp reads the annotations of the pipeline function, so this module must not postpone them.
"""

import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bloomery.components.core import pipeline_run
from bloomery.components.core.config import oversize, packed, parameters
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import named_models
from bloomery.components.core.modelling.named_models import START
from bloomery.infra.short_stacks import short_stacks
from bloomery.pipelines import launch, tune
from bloomery.pipelines.chain import MODEL, Stage
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.tune import Search
from bloomery.pipelines.tune_trials import FIXED, name_in_trial, trial_of


@short_stacks()
def build(
    recipe: str,
    settings: Sequence[str],
    over: Sequence[str],
    *,
    trials: int,
    sampler: str,
    measure: str = "",
    maximise: bool = False,
    parallel: int = 4,
    prepare: bool = False,
    for_pods: Callable[[Recipe], Recipe] = lambda loaded: loaded,
) -> Any:
    """The pipeline of a search, `over` written as `tune.parse_over` reads it: stages before the first that trials
    differ in run once, those from it to the measured one in every trial, `parallel` trials at a time. Nothing is
    evaluated or promoted. `for_pods` makes of a recipe one that pods can read; `prepare` makes the demo's files for it.

    Raises: ConfigError as `tune.search`, and for keys that are no settings of stages, or that change the chain.
    """
    searches = [tune.parse_over(text) for text in over]
    base, stage, metric = tune.checked(recipe, settings, searches, measure, prepare=prepare)
    base = for_pods(base)
    names = [one.name for one in base.stages]
    varied = [each.key.partition(".")[0] for each in searches]
    if outside := [each.key for each, name in zip(searches, varied, strict=True) if name not in names]:
        raise ConfigError(
            f"--over {outside[0]}: trials of a pipeline differ in the settings of stages ({', '.join(names)}); for "
            "other keys compile a search for each value, by --set"
        )

    def load(chosen: Mapping[str, Any]) -> Recipe:
        return launch.load(recipe, [*settings, *(tune.setting(*one) for one in chosen.items())], prepare=False)

    stages = base.stages[: names.index(stage) + 1]
    for each in searches:
        for value in each.ends():
            _check_wiring(stages, load({each.key: value}).stages, each.key)
    first = min(names.index(name) for name in [*varied, stage])
    search: dict[str, Any] = {
        "name": tune.study_name(base, settings, searches, f"{stage}/{metric}"),
        "measure": f"{stage}/{metric}",
        "maximise": maximise,
        "sampler": sampler,
        "trials": trials,
    }
    given: dict[str, Any] = {}
    if sampler in FIXED:
        found = settings_of(searches, sampler, trials, base.seed)
        search["trials"] = len(found)
        given["trials"] = [
            trial_of(number, chosen, for_pods(load(chosen)).stages[first : len(stages)])
            for number, chosen in enumerate(found)
        ]
    else:
        tune.sampler_of(tune.optuna_quietly(), sampler, searches, None)  # type: ignore[arg-type]
        between = [one.name for one in stages[first:]]
        search |= {"over": list(over), "stages": between, "recipe": packed(parameters(base))}
    trial = max(given.get("trials", [trial_of(0, {}, stages[first:])]), key=lambda one: len(json.dumps(one)))
    if told := oversize(search | trial, search | trial):
        raise ConfigError(f"{recipe}, in a trial: {told}, or search on this machine (without --compile)")
    given |= {"search": search, "preflight": packed(parameters(base.preflight()))}
    given |= {one.name: packed(parameters(one.config)) for one in stages[:first]}
    return _pipeline(base, stages[:first], stages[first:], given, parallel)


def settings_of(over: Sequence[Search], sampler: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """The settings of each trial, by key: the first `trials` of the grid, or so many that are drawn.

    Raises: ConfigError for a grid of a range, MissingExtraError without Optuna.
    """
    optuna = tune.optuna_quietly()
    chosen = tune.sampler_of(optuna, sampler, over, seed)  # type: ignore[arg-type]
    if sampler == "grid":
        places = itertools.islice(itertools.product(*(each.choices for each in over)), trials)
        return [{each.key: value for each, value in zip(over, values, strict=True)} for values in places]
    study = optuna.create_study(sampler=chosen)
    drawn = (study.ask() for _ in range(trials))
    return [{each.key: each.suggest(trial) for each in over} for trial in drawn]


def _check_wiring(ours: Sequence[Stage], theirs: Sequence[Stage], key: str) -> None:
    for one, other in zip(ours, theirs, strict=False):
        if _wiring(one) != _wiring(other):
            raise ConfigError(
                f"--over {key}: changes what the stage {one.name} reads or writes, and one pipeline has one chain; "
                "compile a search for each value, by --set"
            )


def _wiring(stage: Stage) -> list[Any]:
    named = named_models.stages(stage.config)
    return [stage.step, stage.name, stage.goes_on_from, sorted(stage.writes), sorted(stage.needs), named]


def _pipeline(
    base: Recipe, before: Sequence[Stage], within: Sequence[Stage], given: dict[str, Any], parallel: int
) -> Any:
    from kfp import dsl

    from bloomery.infra.resources import place
    from bloomery.infra.secrets import STUDIES, TRACKER
    from bloomery.pipelines import tune_tasks
    from bloomery.pipelines.post_training import facts_of, task_maker

    def search(*values: Any) -> None:
        known = dict(zip(given, values, strict=True))
        task = task_maker(base)
        checked = task("preflight", "preflight", known["preflight"])
        newest = {schema: checked[port] for port, schema in base.start().items()}
        models = {START: checked["start"]}

        def run(stage: Stage, config: Any, trial: Any = None) -> dict[str, Any]:
            name = stage.name if trial is None else getattr(trial, name_in_trial(stage))
            known_here = {"title": stage.name, "is_trial": trial is not None}
            made = task(stage.step, name, config, **known_here, **stage.inputs(newest, models))
            newest.update({schema: made[port] for port, schema in stage.writes.items()})
            if MODEL in stage.writes.values():
                models[stage.name] = newest[MODEL]
            return made

        def own(component: Any, *keys: str, **inputs: Any) -> Any:
            created = component(search=known["search"], **inputs)
            place(created, "tune", base.resources, accelerated=False, cached=False, shared=keys)
            for variable, value in facts_of(base).items():
                created.set_env_variable(variable, value)
            return created

        def through(trial: Any) -> Any:
            for stage in within:
                made = run(stage, getattr(trial, stage.name), trial)
            return own(tune_tasks.told, *studies, trial=trial, metrics=made["metrics"])

        studies = () if "trials" in known else (STUDIES,)
        for stage in before:
            run(stage, known[stage.name])
        if "trials" in known:
            with dsl.ParallelFor(known["trials"], parallelism=parallel) as trial:
                row = through(trial)
        else:
            study = own(tune_tasks.opened, *studies)
            with dsl.ParallelFor(study.output, parallelism=parallel) as number:
                asked = own(tune_tasks.asked, *studies, place=number)
                with dsl.ParallelFor(asked.output) as trial:  # of one: only a loop's item can be taken apart
                    row = through(trial)
        own(tune_tasks.collected, *TRACKER, rows=dsl.Collected(row.output)).set_env_variable(pipeline_run.LAST, "1")

    parameters_of = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=type(value))
        for name, value in given.items()
    ]
    search.__signature__ = inspect.Signature(parameters_of)  # type: ignore[attr-defined]
    description = f"{given['search']['trials']} trials of {base.name} for {given['search']['measure']}"
    return dsl.pipeline(name=f"{base.name}-search", description=description)(search)
