"""`bloomery monitor …`: drift from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bloomery.pipelines.cli_models import with_registry
from bloomery.pipelines.cli_options import WORKDIR, JsonOption, RecipeArgument, SetOption, WorkdirOption

app = typer.Typer(help="Drift of the served traffic, and the retraining that it starts.", no_args_is_help=True)


@app.command("check")
def monitor_check(
    recipe: RecipeArgument,
    log: Annotated[
        str, typer.Option(help="Prediction log; or a file, folder or URI of JSONL or Parquet rows of prediction/1.")
    ],
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    start: Annotated[bool, typer.Option(help="Start the retraining that the policy asks for.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge the newest full window of the prediction log, and start the one retraining that it may call for.

    Examples:

        bloomery monitor check quickstart --log predictions

        bloomery monitor check my.yaml --log s3://logs/predictions/ --no-start --json
    """
    from bloomery.monitoring.check import check
    from bloomery.pipelines import launch
    from bloomery.pipelines.recipe import find

    loaded = launch.load(recipe, set, prepare=False)
    result = check(find(recipe), workdir, log, loaded.monitoring, settings=set, start=start)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(f"{result['action']}: {result['reason']}")
    if result["window"]:
        typer.echo(f"page: {workdir / 'monitoring' / result['window'] / 'decision.md'}")


@app.command("replay")
def monitor_replay(
    recipe: RecipeArgument,
    traffic: Annotated[Path, typer.Option(help="JSONL rows with `time` and the fields of the task's template.")],
    log: Annotated[str, typer.Option(help="Prediction log to append to: a folder, or a URI such as s3://logs/shop.")],
    task: Annotated[str, typer.Option(help="Task of the recipe whose template asks the questions.")],
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Answer recorded traffic with the champion, and append to the prediction log that `check` reads.

    Examples:

        bloomery monitor replay quickstart --task shop_sql --traffic traffic.jsonl --log predictions

        bloomery monitor replay my.yaml --task faq --traffic april.jsonl --log s3://logs/faq --workdir runs
    """
    from bloomery.components.core.errors import ConfigError
    from bloomery.monitoring.replay import replay
    from bloomery.pipelines import launch

    loaded = launch.load(recipe, set, prepare=False)
    if task not in loaded.tasks or not loaded.tasks[task].templates:
        raise ConfigError(f"--task {task}: no such task with templates; known: {', '.join(loaded.tasks)}")
    name = loaded.registered_model
    champion = with_registry(workdir, lambda registry: registry.alias(name, registry.CHAMPION))
    if champion is None:
        raise ConfigError(
            f"{name}: no champion to answer with; run the recipe first, or give the --workdir of its runs"
        )
    asked = loaded.tasks[task]
    count = replay(
        traffic,
        Path(champion.source),
        log,
        asked.templates[0],
        model_name=name,
        model_version=str(champion.version),
        max_new_tokens=asked.max_new_tokens,
    )
    typer.echo(f"{count} predictions of {name} version {champion.version} written to {log}")
