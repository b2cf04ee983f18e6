"""The DAG, from what preflight took in to a promoted model: the stages of the recipe, in their order.

kfp reads the annotations of the pipeline function, so this module must not postpone them.
"""

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl

from bloomery.components.core import pipeline_run
from bloomery.components.core.config import digest, packed, parameters
from bloomery.components.core.modelling.named_models import START
from bloomery.components.core.step import TRIAL
from bloomery.infra.resources import place
from bloomery.infra.short_stacks import short_stacks
from bloomery.pipelines import steps
from bloomery.pipelines.recipe import Recipe


def stages(recipe: Recipe) -> tuple[str, ...]:
    """Every task of the recipe's DAG by the name that it is reported under, in its order."""
    told = ["preflight", "evaluation_base"]
    for stage in recipe.stages:
        told.append(stage.name)
        if "model/1" in stage.writes.values():
            told.append(f"evaluation_{stage.name}")
    for variant in variants(recipe):
        told += [variant["stage"], variant["evaluation"]]
    return (*told, *(("ptq", "evaluation_ptq") if recipe.quantisation else ()), "evaluation_champion", "promotion")


def variants(recipe: Recipe) -> list[dict[str, Any]]:
    """What the loop over the variants goes through: the names of both stages, and the config."""
    return [
        {
            "stage": f"ptq_{config.name}",
            "evaluation": f"evaluation_ptq_{config.name}",
            "config": packed(parameters(config)),
        }
        for config in recipe.variants()
    ]


def facts_of(recipe: Recipe) -> dict[str, str]:
    """The variables by which a task finds the MLflow run of its pipeline run."""
    return {
        pipeline_run.RECIPE: recipe.name,
        pipeline_run.RECIPE_DIGEST: digest(recipe.model_dump(mode="json")),
    }


def task_maker(recipe: Recipe) -> Callable[..., dict[str, Any]]:
    """What makes a task that runs a step as a stage, with a config and inputs, placed as the recipe says, and returns
    its outputs by port."""
    told = facts_of(recipe)

    def task(
        name: str, stage: Any, config: Any, *, title: str = "", is_trial: bool = False, **inputs: Any
    ) -> dict[str, Any]:
        step = steps.find(name)
        # In a loop the name of the stage is known when it runs.
        title = title or (stage if isinstance(stage, str) else f"{name}_of_variant")
        created = step.component(title)(stage=stage, config=config, **inputs).set_display_name(title)
        for variable, value in told.items():
            created.set_env_variable(variable, value)
        if name == "promotion":
            created.set_env_variable(pipeline_run.LAST, "1")
        if is_trial:
            created.set_env_variable(TRIAL, "1")
        return place(
            created,
            name,
            recipe.resources,
            accelerated=step.accelerator,
            cached=step.is_cached and not is_trial,  # the backend would keep a trial's failure, the store does not
            credentials=step.secrets,
        ).outputs

    return task


@short_stacks()
def build(recipe: Recipe, until: str | None = None) -> Any:
    """The pipeline of `recipe`: structure and resources are fixed, numbers are one struct parameter a stage.

    `until` names the last stage that runs, as in a trial of a search: nothing is evaluated, quantised or promoted.
    """
    settings: dict[str, Any] = {name: packed(parameters(config)) for name, config in recipe.configs().items()}
    settings |= {"quantisation": variants(recipe)} if recipe.quantisation else {}

    def post_training(*values: Any) -> None:
        given = dict(zip(settings, values, strict=True))
        task = task_maker(recipe)

        def evaluate(stage: str, model: Any, config: str = "evaluation") -> Any:
            return task("evaluation", f"evaluation_{stage}", given[config], model=model, tasks=tasks)["results"]

        checked = task("preflight", "preflight", given["preflight"])
        tasks, champion = checked["tasks"], checked["champion"]
        if until is None:
            base_results = evaluate("base", checked["base_model"], "evaluation_of_rivals")

        newest = {schema: checked[port] for port, schema in recipe.start().items()}
        models = {START: checked["start"]}
        done: dict[str, dict[str, Any]] = {}
        for stage in recipe.stages:
            inputs = stage.inputs(newest, models)
            made = done[stage.step] = task(stage.step, stage.name, given[stage.name], **inputs)
            newest |= {schema: made[port] for port, schema in stage.writes.items()}
            if "model/1" in stage.writes.values():
                models[stage.name] = newest["model/1"]
            if stage.name == until:
                return
            if until is None and "model/1" in stage.writes.values():
                is_candidate = stage.name == recipe.last_model() and not recipe.quantisation
                results = evaluate(
                    stage.name, newest["model/1"], "evaluation_of_rivals" if is_candidate else "evaluation"
                )

        judged = {"model": newest["model/1"], "candidate_results": results}
        if recipe.quantisation:
            calibration = {"chats": newest["chat/2"]} if "chat/2" in newest else {}
            with dsl.ParallelFor(
                given["quantisation"], name="variants", parallelism=recipe.resources.parallel_variants or None
            ) as variant:
                exported = task(
                    "quantisation",
                    variant.stage,
                    variant.config,
                    base_model=newest["model/1"],
                    tasks=tasks,
                    **calibration,
                )
                task("evaluation", variant.evaluation, given["evaluation"], model=exported["model"], tasks=tasks)
            chosen = task(
                "ptq",
                "ptq",
                given["ptq"],
                models=dsl.Collected(exported["model"]),
                measurements=dsl.Collected(exported["measurement"]),
            )
            judged = {
                "model": chosen["model"],
                "parent": newest["model/1"],
                "variants": chosen["variants"],
                "candidate_results": evaluate("ptq", chosen["model"], "evaluation_of_rivals"),
            }
        if "data_curation" in done:
            judged["curated"] = done["data_curation"]["documents"]
        if "dedup" in done:
            judged |= {"unique": done["dedup"]["kept"], "duplicates": done["dedup"]["duplicates"]}
        if "chat_curation" in done:
            judged |= {port: done["chat_curation"][port] for port in ("chats", "preferences")}
        task(
            "promotion",
            "promotion",
            given["promotion"],
            tasks=tasks,
            base_results=base_results,
            champion_results=evaluate("champion", champion, "evaluation_of_rivals"),
            champion=champion,
            champion_version=checked["champion_version"],
            **judged,
        )

    parameters_of = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=type(value))
        for name, value in settings.items()
    ]
    post_training.__signature__ = inspect.Signature(parameters_of)  # type: ignore[attr-defined]
    description = f"From data and a base model to a promoted {recipe.registered_model}"
    return dsl.pipeline(name=recipe.name, description=description)(post_training)
