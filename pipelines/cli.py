"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.components.core.errors import BloomeryError

app = typer.Typer(
    help="From raw text and a base model to a language model that was measured, judged and promoted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
models_app = typer.Typer(help="The model registry: list, promote, roll back.", no_args_is_help=True)
monitor_app = typer.Typer(help="Drift of the served traffic, and the retraining that it starts.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(monitor_app, name="monitor")

RecipeArgument = Annotated[str, typer.Argument(help="Recipe file, or the name of one that comes with the package.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="STEP.KEY=VALUE", help="Override a key of the recipe; repeatable.")
]
WorkdirOption = Annotated[
    Path, typer.Option(help="Folder of runs, finished results, promoted models and the MLflow database.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
WORKDIR = Path("bloomery-runs")


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs.")] = False) -> None:
    if verbose:
        os.environ["LOG_LEVEL"] = "DEBUG"


@app.command()
def run(
    recipe: RecipeArgument,
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on this machine, from its documents to the registry.

    Exit codes: 0 promoted, 5 rejected by the gate, else the code of the error (see README). Finished steps are
    reused, so a run that was killed goes on where it was.

    Examples:

        bloomery run quickstart

        bloomery run my.yaml --workdir runs --set dpo.beta=0.2 --set seed=3 --json
    """
    from bloomery.pipelines import launch
    from bloomery.pipelines.post_training import STAGES
    from bloomery.pipelines.progress import Lines, Live

    loaded = launch.load(recipe, set, prepare=True)
    show: Any = Live(STAGES) if sys.stderr.isatty() else Lines()
    try:
        summary = launch.run_local(loaded, workdir, show)
    finally:
        show.close()
    model = summary["model"]
    named = f": {model['name']} version {model['version']} ({', '.join(model['aliases'])})" if model else ""
    typer.echo(f"{summary['status']}{named} in {summary['seconds']:.0f} s\n{summary['reason']}", err=True)
    typer.echo(f"report: {summary['report']}", err=True)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
    raise typer.Exit(summary["exit_code"])


@app.command()
def validate(recipe: RecipeArgument, set: SetOption = []) -> None:  # noqa: A002, B006
    """Check a recipe without running it; every problem is told at once.

    Examples:

        bloomery validate quickstart

        bloomery validate my.yaml --set sft.epochs=3
    """
    from bloomery.pipelines import launch

    loaded = launch.load(recipe, set, prepare=False)
    typer.echo(f"{loaded.name}: valid; {len(loaded.tasks)} tasks, {len(loaded.data_curation.sources)} document sources")


@app.command("compile")
def compile_(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Compile a recipe to Kubeflow Pipelines IR (YAML), to be submitted to a cluster.

    Examples:

        bloomery compile quickstart -o pipeline.yaml

        BLOOMERY_IMAGE_GPU=registry/bloomery:gpu bloomery compile my.yaml -o pipeline.yaml
    """
    from bloomery.pipelines import launch

    launch.compile_to(launch.load(recipe, set, prepare=False), output)
    typer.echo(str(output))


@app.command()
def submit(
    recipe: RecipeArgument,
    set: SetOption = [],  # noqa: A002, B006
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="KFP_ENDPOINT", help="Address of the Kubeflow Pipelines API; none: kfp's own search."),
    ] = None,
) -> None:
    """Submit a recipe to a Kubeflow Pipelines cluster.

    Examples:

        bloomery submit my.yaml --endpoint http://localhost:8888

        KFP_ENDPOINT=https://kfp.example.com bloomery submit my.yaml --set seed=3
    """
    from bloomery.pipelines import launch

    typer.echo(launch.submit(launch.load(recipe, set, prepare=False), endpoint))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def step(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the step, such as sft.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with the step's config.")] = None,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Run one step on artifacts: `--INPUT FOLDER` and `--OUTPUT FOLDER` for each name of its signature.

    Examples:

        bloomery step dedup --documents curated --tasks tasks --kept unique --duplicates removed

        bloomery step sft --config sft.yaml --set learning_rate=1e-4 --chats c --tasks t --base-model b --model out
    """
    from bloomery.pipelines.steps import run_one

    metrics = run_one(name, config, set, context.args)
    typer.echo(json.dumps(metrics, ensure_ascii=False))


@app.command()
def ls(workdir: WorkdirOption = WORKDIR, as_json: JsonOption = False) -> None:
    """List the runs of a workdir, newest first.

    Examples:

        bloomery ls

        bloomery ls --workdir runs --json
    """
    from bloomery.pipelines.history import runs

    found = runs(workdir)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for entry in found:
        model = entry["model"]
        named = f"{model['name']} v{model['version']}" if model else ""
        typer.echo(f"{entry['run']:<48} {entry['status']:<9} {entry['seconds']:>7.0f} s  {named}")


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name of a run as `bloomery ls` prints it, or `last`.")] = "last",
    workdir: WorkdirOption = WORKDIR,
    as_json: JsonOption = False,
) -> None:
    """Show what a run measured, stage by stage, and what the gate said.

    Examples:

        bloomery show

        bloomery show 20260101-120000-quickstart --workdir runs --json
    """
    from bloomery.pipelines.history import describe, summary_of

    summary = summary_of(workdir, run)
    typer.echo(json.dumps(summary, ensure_ascii=False) if as_json else describe(summary))


@models_app.command("list")
def models_list(
    name: Annotated[str | None, typer.Argument(help="Registered model; all if left out.")] = None,
    workdir: WorkdirOption = WORKDIR,
    as_json: JsonOption = False,
) -> None:
    """List registered versions and their aliases, newest first.

    Examples:

        bloomery models list

        bloomery models list shop-sql --workdir runs --json
    """
    found = _with_registry(workdir, lambda registry: registry.versions(name))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for entry in found:
        typer.echo(
            f"{entry['name']:<24} version {entry['version']:<4} {', '.join(entry['aliases']):<22} {entry['source']}"
        )
    if not found:
        typer.echo("no registered models yet")


@models_app.command("promote")
def models_promote(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str, typer.Argument(help="Version to make the champion.")],
    workdir: WorkdirOption = WORKDIR,
) -> None:
    """Make a registered version the champion by hand; the old champion becomes `previous`.

    Examples:

        bloomery models promote shop-sql 2

        bloomery models promote shop-sql 1 --workdir runs
    """

    def promote(registry: Any) -> str:
        known = [entry["version"] for entry in registry.versions(name)]
        if version not in known:
            from bloomery.components.core.errors import ConfigError

            raise ConfigError(f"{name}: no version {version}; known: {', '.join(known) or 'none'}")
        champion = registry.alias(name, registry.CHAMPION)
        registry.promote(name, version, expected_champion=str(champion.version) if champion else None)
        return f"{name}: champion is version {version}"

    typer.echo(_with_registry(workdir, promote))


@models_app.command("rollback")
def models_rollback(
    name: Annotated[str, typer.Argument(help="Registered model.")], workdir: WorkdirOption = WORKDIR
) -> None:
    """Make the previous champion the champion again.

    Examples:

        bloomery models rollback shop-sql

        bloomery models rollback shop-sql --workdir runs
    """

    def rollback(registry: Any) -> str:
        old, new = registry.rollback(name)
        return f"{name}: champion is version {new} again; version {old} is `previous`"

    typer.echo(_with_registry(workdir, rollback))


@monitor_app.command("check")
def monitor_check(
    recipe: RecipeArgument,
    log: Annotated[
        str, typer.Option(help="Prediction log: file, folder or URI of JSONL or Parquet rows of prediction/1.")
    ],
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    start: Annotated[bool, typer.Option(help="Start the retraining that the policy asks for.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge the newest full window of the prediction log, and start the one retraining that it may call for.

    Examples:

        bloomery monitor check quickstart --log predictions.jsonl

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


@monitor_app.command("replay")
def monitor_replay(
    recipe: RecipeArgument,
    traffic: Annotated[Path, typer.Option(help="JSONL rows with `time` and the fields of the task's template.")],
    log: Annotated[Path, typer.Option(help="Prediction log to write, as JSON lines.")],
    task: Annotated[str, typer.Option(help="Task of the recipe whose template asks the questions.")],
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Answer recorded traffic with the champion, and write the prediction log that `check` reads.

    Examples:

        bloomery monitor replay quickstart --task shop_sql --traffic traffic.jsonl --log predictions.jsonl

        bloomery monitor replay my.yaml --task faq --traffic april.jsonl --log april-predictions.jsonl --workdir runs
    """
    from bloomery.components.core.errors import ConfigError
    from bloomery.monitoring.replay import replay
    from bloomery.pipelines import launch

    loaded = launch.load(recipe, set, prepare=False)
    if task not in loaded.tasks or not loaded.tasks[task].templates:
        raise ConfigError(f"--task {task}: no such task with templates; known: {', '.join(loaded.tasks)}")
    name = loaded.registered_model
    champion = _with_registry(workdir, lambda registry: registry.alias(name, registry.CHAMPION))
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


def _with_registry(workdir: Path, action: Callable[[Any], Any]) -> Any:
    from bloomery.components.core import registry
    from bloomery.components.core.errors import ConfigError
    from bloomery.pipelines.launch import tracking_uri

    uri = tracking_uri(workdir)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"{workdir}: no MLflow database there; run a recipe first, or give the --workdir of a run")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return action(registry)


def main() -> None:
    """Entry point: a BloomeryError is one message on stderr and its exit code."""
    from bloomery.components.core.step import configure_logging

    configure_logging()
    try:
        app()
    except BloomeryError as error:
        for line in str(error).split("\n"):
            typer.echo(f"error: {line}", err=True)
        logging.getLogger(__name__).debug("traceback", exc_info=error)
        sys.exit(error.exit_code)
