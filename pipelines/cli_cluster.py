"""`bloomery submit | status | logs | cancel | schedule`: runs on a cluster."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bloomery.pipelines.cli_options import (
    WORKDIR,
    EndpointOption,
    InImageOption,
    JsonOption,
    NamespaceOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    TokenOption,
    UploadOption,
    WorkdirOption,
)


def submit(
    recipe: RecipeArgument,
    set: SetOption = [],  # noqa: A002, B006
    upload: UploadOption = None,
    in_image: InImageOption = False,
    key: Annotated[
        str | None, typer.Option(help="Name of the run; where one has it, its id is printed and none is submitted.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the run until it has ended.")] = False,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
) -> None:
    """Submit a recipe to a Kubeflow Pipelines cluster, and print the id of its run.

    Files of this machine are refused, or with --upload put where pods read them. Exit codes: 2 for what the API
    refuses, 7 if it does not answer; with --wait 1 if the run fails.

    Examples:

        bloomery submit my.yaml --endpoint http://localhost:8888

        bloomery submit quickstart --upload s3://mlpipeline/bloomery --wait

        KFP_ENDPOINT=https://kfp.example.com KFP_TOKEN=… bloomery submit my.yaml --namespace team-a --set seed=3
    """
    from bloomery.pipelines import launch, local_files, submission
    from bloomery.pipelines.kubeflow import Access

    loaded = launch.load(recipe, set, prepare=bool(upload) and not in_image)
    access = Access(endpoint, namespace, token)
    run = submission.submit(local_files.for_pods(loaded, upload, in_image=in_image), access, key)
    typer.echo(run)
    if wait:
        _follow(run, access)


def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run has ended.")] = False,
    as_json: JsonOption = False,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
) -> None:
    """Show how far a run on a cluster is: its stages with their states and times, and why one failed or waits.

    Exit code 1 if the run has failed or was cancelled.

    Examples:

        bloomery status 6f1c2a80-51e1-4d0a-9f5e-2f0f6f2a9b11

        bloomery status nightly-w0004 --watch

        bloomery status nightly-w0004 --json
    """
    from bloomery.pipelines import submission
    from bloomery.pipelines.kubeflow import Access

    access = Access(endpoint, namespace, token)
    if watch and not as_json:
        _follow(run, access)
        return
    now = submission.seen(run, access)
    if as_json:
        typer.echo(json.dumps(asdict(now), ensure_ascii=False, default=str))
    else:
        for task in now.tasks:
            seconds = "" if task.seconds is None else f"{task.seconds:.0f} s"
            typer.echo(f"{task.stage:<24} {task.state:<9} {seconds:>8}  {task.message}".rstrip())
        typer.echo(f"{now.name}: {now.state.lower()}", err=True)
    if now.state in ("FAILED", "CANCELED"):
        submission.raise_for(now)


def logs(
    run: RunArgument,
    stage: Annotated[
        str | None, typer.Argument(help="Stage of the run; none: the one that failed, else the last that began.")
    ] = None,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
) -> None:
    """Print what a stage of a run on a cluster has written: the log of its pod, the last of several.

    Examples:

        bloomery logs nightly-w0004

        bloomery logs 6f1c2a80-51e1-4d0a-9f5e-2f0f6f2a9b11 sft_2
    """
    from bloomery.pipelines import submission
    from bloomery.pipelines.kubeflow import Access

    typer.echo(submission.logs(run, stage, Access(endpoint, namespace, token)), nl=False)


def cancel(
    run: RunArgument,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
) -> None:
    """End a run on a cluster; its finished steps can be reused.

    Examples:

        bloomery cancel nightly-w0004

        bloomery cancel 6f1c2a80-51e1-4d0a-9f5e-2f0f6f2a9b11 --endpoint http://localhost:8888
    """
    from bloomery.pipelines import submission
    from bloomery.pipelines.kubeflow import Access

    typer.echo(submission.cancel(run, Access(endpoint, namespace, token)))


def schedule(
    context: typer.Context,
    recipe: RecipeArgument,
    check: Annotated[str | None, typer.Option(metavar="CRON", help="When to check for drift; needs --log.")] = None,
    retrain: Annotated[str | None, typer.Option(metavar="CRON", help="When to run the whole recipe.")] = None,
    log: Annotated[str | None, typer.Option(help="Prediction log that is checked.")] = None,
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    upload: UploadOption = None,
    in_image: InImageOption = False,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check for drift, or retrain, again and again.

    Where the recipe's `monitoring.runner` is `cluster`, recurring runs are made there, and replace those of the same
    recipe; where it is `local`, the lines for `crontab` are printed. CRON has five fields, or the seconds and five.

    Examples:

        bloomery schedule my.yaml --check "*/15 * * * *" --log s3://logs/predictions --endpoint http://localhost:8888

        bloomery schedule quickstart --check "0 * * * *" --retrain "0 3 * * 1" --log predictions
    """
    from bloomery.components.core.errors import ConfigError
    from bloomery.pipelines import launch, local_files
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
        lines = schedules.cron_lines(recipe, workdir, log, check, retrain, set)
        typer.echo(json.dumps(lines, ensure_ascii=False) if as_json else "\n".join(lines))
        return
    if retrain is not None:
        loaded = launch.load(recipe, set, prepare=bool(upload) and not in_image)
        loaded = local_files.for_pods(loaded, upload, in_image=in_image)
    access = Access(endpoint, namespace, token)
    made = schedules.schedule(loaded, schedules.path_in_the_cluster(recipe), log, check, retrain, access)
    typer.echo(json.dumps(made) if as_json else "\n".join(f"{name}: {run}" for name, run in made.items()))


COMMANDS = (submit, status, logs, cancel, schedule)


def _follow(run: str, access: Any) -> None:
    """Show a run until it has ended, and raise what ended it if it failed."""
    from bloomery.pipelines import submission
    from bloomery.pipelines.progress import Lines, Live

    stages = tuple(task.stage for task in submission.seen(run, access).tasks)
    show: Any = Live(stages) if sys.stderr.isatty() else Lines()
    try:
        ended = submission.follow(run, access, show)
    finally:
        show.close()
    submission.raise_for(ended)
    typer.echo(f"{ended.name}: {ended.state.lower()}", err=True)
