"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bloomery.components.core import errors
from bloomery.components.core.errors import BloomeryError
from bloomery.pipelines import (
    cli_advise,
    cli_check,
    cli_cluster,
    cli_demo,
    cli_doctor,
    cli_models,
    cli_monitor,
    cli_plan,
    cli_serve,
    cli_tune,
)
from bloomery.pipelines.cli_options import (
    WORKDIR,
    EndpointOption,
    InImageOption,
    JsonOption,
    NamespaceOption,
    RecipeArgument,
    SetOption,
    StateOption,
    TokenOption,
    UploadOption,
    WorkdirOption,
)

app = typer.Typer(
    help="From raw text and a base model to a language model that was measured, judged and promoted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_monitor.app, name="monitor")
app.add_typer(cli_demo.app, name="demo")
app.command()(cli_serve.serve)
app.command()(cli_check.check)
app.command()(cli_advise.advise)
app.command()(cli_plan.plan)
app.command()(cli_tune.tune)
app.command()(cli_doctor.doctor)
for command in cli_cluster.COMMANDS:
    app.command()(command)


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs.")] = False) -> None:
    if verbose:
        os.environ["LOG_LEVEL"] = "DEBUG"


@app.command()
def run(
    recipe: RecipeArgument,
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    key: Annotated[
        str | None, typer.Option(help="Run once: of all commands with this key in this workdir, one runs.")
    ] = None,
    runner: Annotated[
        Literal["process", "docker"], typer.Option(help="Tasks as processes, or as containers in the image of pods.")
    ] = "process",
    network: Annotated[
        str, typer.Option(help="Network of the containers, as `docker run --network` has it; `host` reaches services.")
    ] = "none",
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on this machine, from its documents to the registry.

    Exit codes: 0 promoted, 5 rejected by the gate, else the code of the error (see README). Finished steps are
    reused, so a run that was killed goes on where it was. With `--runner docker` each task runs in the image that
    `make image` makes, or that BLOOMERY_IMAGE_CPU names, without network, and reads the recipe's files but cannot
    write them.

    Examples:

        bloomery run quickstart

        bloomery run my.yaml --workdir runs --set dpo.beta=0.2 --set seed=3 --json

        bloomery run quickstart --runner docker
    """
    from bloomery.infra import surroundings

    surroundings.enter()  # the demo's base model is trained in this process, and threads that spin starve beside others
    from bloomery.pipelines import fork_server, workdirs

    forks = fork_server.running() if runner == "process" else contextlib.nullcontext(fork_server.end_none)
    # The server of forks imports what tasks need while this process imports what a recipe needs.
    with workdirs.held(workdir), forks as end_tasks, fork_server.interruptible(end_tasks):
        from bloomery.pipelines import launch
        from bloomery.pipelines.post_training import stages
        from bloomery.pipelines.progress import Lines, Live

        loaded = launch.load(recipe, set, prepare=True)
        show: Any = Live(stages(loaded)) if sys.stderr.isatty() else Lines()
        try:
            summary = launch.run_local(loaded, workdir, show, key, network=network if runner == "docker" else None)
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
    """Check a recipe without running it: every problem that the recipe alone tells, at once.

    Local files have to be there, and are not looked into: what is in them, such as a field that a template names and no
    row has, is told by preflight, with which every run begins, before anything is trained.

    Examples:

        bloomery validate quickstart

        bloomery validate my.yaml --set sft.epochs=3
    """
    from bloomery.pipelines import launch

    loaded = launch.load(recipe, set, prepare=False, is_here=True)
    chain = " → ".join(stage.name for stage in loaded.stages)
    typer.echo(f"{loaded.name}: valid; {len(loaded.tasks)} tasks; {chain}")


@app.command("compile")
def compile_(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Compile a recipe to Kubeflow Pipelines IR (YAML), to be submitted to a cluster.

    The planned memory of each stage has to fit its task, and the card that `resources.card` names.

    Examples:

        bloomery compile quickstart -o pipeline.yaml

        BLOOMERY_IMAGE_GPU=registry/bloomery:gpu bloomery compile my.yaml -o pipeline.yaml
    """
    from bloomery.pipelines import fits, launch, local_files

    loaded = launch.load(recipe, set, prepare=False)
    fits.check(loaded)
    launch.compile_to(loaded, output)
    if told := local_files.warning(loaded):
        typer.echo(f"{told}; an option of `bloomery submit`", err=True)
    typer.echo(str(output))


@app.command()
def schedule(
    context: typer.Context,
    recipe: RecipeArgument,
    check: Annotated[str | None, typer.Option(metavar="CRON", help="When to check for drift; needs --log.")] = None,
    retrain: Annotated[str | None, typer.Option(metavar="CRON", help="When to run the whole recipe.")] = None,
    log: Annotated[str | None, typer.Option(help="Prediction log that is checked.")] = None,
    workdir: StateOption = str(WORKDIR),
    set: SetOption = [],  # noqa: A002, B006
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    upload: UploadOption = None,
    in_image: InImageOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check for drift, or retrain, again and again.

    Where the recipe's `monitoring.runner` is `cluster`, recurring runs are made there, and replace those of the same
    recipe: a recipe of your own goes with them as it is now, with --upload its files, too. Where it is `local`, the
    lines for `crontab` are printed. CRON has five fields, or the seconds and five.

    Examples:

        bloomery schedule my.yaml --check "*/15 * * * *" --log s3://logs/predictions --workdir s3://logs/shop \\
        --set monitoring.runner=cluster --upload s3://logs/shop

        bloomery schedule quickstart --check "0 * * * *" --retrain "0 3 * * 1" --log predictions
    """
    from bloomery.components.core.errors import ConfigError
    from bloomery.pipelines import fits, launch, local_files, recipe_files
    from bloomery.pipelines import schedule as schedules
    from bloomery.pipelines.kubeflow import Access

    if check is None and retrain is None:
        raise ConfigError("nothing to schedule; give --check CRON, --retrain CRON, or both")
    if check is not None and log is None:
        raise ConfigError("--check needs --log, the prediction log that is checked")
    loaded = launch.load(recipe, set, prepare=False)
    if loaded.monitoring.runner == "local":
        if getattr(context.get_parameter_source("endpoint"), "name", "") == "COMMANDLINE":
            raise ConfigError(
                f"--endpoint {endpoint}: monitoring.runner is local, which makes lines for this machine's cron and "
                "asks no cluster; give --set monitoring.runner=cluster, or leave --endpoint out"
            )
        lines = schedules.cron_lines(recipe, Path(workdir), log, check, retrain, set)
        typer.echo(json.dumps(lines, ensure_ascii=False) if as_json else "\n".join(lines))
        return
    schedules.reached(check, log, workdir)
    is_own = recipe_files.is_path(recipe)
    if retrain is not None or is_own:
        loaded = launch.load(recipe, set, prepare=bool(upload) and not in_image)
        fits.check(loaded)
        loaded = local_files.for_pods(loaded, upload, in_image=in_image)
    named, settings = (None, []) if is_own else (recipe, set)  # what goes with the check has the settings in it
    access = Access(endpoint, namespace, token)
    made = schedules.schedule(loaded, named, log, check, retrain, access, workdir=workdir, settings=settings)
    typer.echo(json.dumps(made) if as_json else "\n".join(f"{name}: {run}" for name, run in made.items()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def step(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the step, such as sft.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with the step's config.")] = None,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Run one step on artifacts: `--INPUT FOLDER` and `--OUTPUT FOLDER` for each name of its signature.

    With BLOOMERY_STORE in the environment, a folder or s3://bucket/prefix, a result that is finished there is taken,
    and a training that was killed goes on from its checkpoint; without it nothing is kept but the outputs.

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
    from bloomery.pipelines.history import line, runs

    found = runs(workdir)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for entry in found:
        typer.echo(line(entry))


@app.command()
def show(
    run: Annotated[
        str, typer.Argument(help="Name of a run as `bloomery ls` prints it, or `last`; `recipe`: a key of recipes.")
    ] = "last",
    key: Annotated[str, typer.Argument(help="After `recipe`: the key, such as sft.learning_rate; none: all.")] = "",
    workdir: WorkdirOption = WORKDIR,
    as_json: JsonOption = False,
) -> None:
    """Show what a run measured, stage by stage, and what the gate said; or what a key of a recipe means. Of a run that
    goes on, or was killed, what `bloomery ls` tells.

    Examples:

        bloomery show

        bloomery show 20260101-120000-quickstart --workdir runs --json

        bloomery show recipe dpo.beta
    """
    if run == "recipe":
        from bloomery.pipelines.schema import documentation

        typer.echo(documentation(key))
        return
    if key:
        from bloomery.components.core.errors import ConfigError

        raise ConfigError(f"show {run} {key}: a key is shown of a recipe: bloomery show recipe {key}")
    from bloomery.pipelines.history import describe, shown

    found = shown(workdir, run)
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else describe(found))


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="Name of a run as `bloomery ls` prints it, or `last`.")],
    run_b: Annotated[str, typer.Argument(help="Name of the other run.")],
    workdir: WorkdirOption = WORKDIR,
    out: Annotated[Path | None, typer.Option(help="Write the comparison as an HTML page, too.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Ask a model which answer is better: a checkpoint folder, or model@https://host/v1.")
    ] = None,
    judge_limit: Annotated[int, typer.Option(min=1, help="Prompts of each set that the judge sees.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Compare the last models of two runs on the prompts that both answered, with intervals and p-values.

    Examples:

        bloomery compare 20260101-120000-quickstart last

        bloomery compare 20260101-120000-quickstart last --out difference.html --json

        bloomery compare 20260101-120000-quickstart last --judge big-model@https://host/v1
    """
    from bloomery.components.evaluation.judge import judge_named
    from bloomery.pipelines import compare as comparison

    found = comparison.compare_runs(workdir, run_a, run_b, judge_named(judge) if judge else None, judge_limit)
    if out:
        comparison.write_page(found, out)
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else comparison.describe(found))


def main() -> None:
    """Entry point: a BloomeryError is one message on stderr and its exit code, and so is what a disk refuses; SIGTERM
    unwinds a command as Ctrl-C does, so that what it has started, and temporary files, go with it."""
    from bloomery.components.core.step import configure_logging
    from bloomery.components.core.tracking import sigterm_raises

    configure_logging()
    try:
        try:
            with sigterm_raises():
                app()
        except OSError as error:
            if error.errno not in errors.OF_A_DISK:
                raise
            raise errors.from_os_error(error, " ".join(["running bloomery", *sys.argv[1:2]])) from error
        except KeyboardInterrupt:  # before typer has begun, which ends with the same
            sys.exit(130)
    except BloomeryError as error:
        for line in str(error).split("\n"):
            typer.echo(f"error: {line}", err=True)
        logging.getLogger(__name__).debug("traceback", exc_info=error)
        sys.exit(error.exit_code)
