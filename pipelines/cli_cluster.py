"""`bloomery submit | status | logs | cancel`: runs on a cluster."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines.cli_options import (
    EndpointOption,
    InImageOption,
    JsonOption,
    NamespaceOption,
    RunArgument,
    SetOption,
    TokenOption,
    UploadOption,
)


def submit(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, the name of one that comes with the package, or a compiled pipeline.")
    ],
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
    """Submit a recipe, or a compiled pipeline as it is, to a Kubeflow Pipelines cluster, and print the id of its run.

    Files of this machine are refused, or with --upload put where pods read them. Exit codes: 2 for what the API
    refuses, 7 if it does not answer; with --wait those of `bloomery run`: 0 promoted, 5 rejected by the gate, else that
    of the error, or 1 where its kind is not known.

    Examples:

        bloomery submit my.yaml --endpoint http://localhost:8888

        bloomery submit quickstart --upload s3://mlpipeline/bloomery --wait

        bloomery tune my.yaml --over sft.adapter.rank=8,16,32 --sampler grid --compile search.yaml

        bloomery submit search.yaml --key ranks

        KFP_ENDPOINT=https://kfp.example.com KFP_TOKEN=… bloomery submit my.yaml --namespace team-a --set seed=3
    """
    from bloomery.pipelines import fits, launch, local_files, submission
    from bloomery.pipelines.kubeflow import Access

    access = Access(endpoint, namespace, token)
    if launch.name_of_compiled(Path(recipe)):
        if set or in_image or upload:
            given = "--set, --upload and --in-image belong to the command that compiles it"
            raise ConfigError(f"{recipe} is compiled: {given}")
        run = submission.submit_compiled(Path(recipe), access, key)
    else:
        loaded = launch.load(recipe, set, prepare=bool(upload) and not in_image)
        fits.check(loaded)
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

    Exit codes: those of `bloomery submit --wait` once the run has ended, 0 before.

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
            typer.echo(f"{task.stage:<24} {task.word:<9} {seconds:>8}  {task.message}".rstrip())
        if now.overhead:
            typer.echo(now.overhead, err=True)
        typer.echo(f"{now.name}: {now.outcome}", err=True)
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


COMMANDS = (submit, status, logs, cancel)


def _follow(run: str, access: Any) -> None:
    """Show a run until it has ended, and raise why it has not ended well."""
    from bloomery.pipelines import submission
    from bloomery.pipelines.progress import Lines, Live

    stages = tuple(task.stage for task in submission.seen(run, access).tasks)
    show: Any = Live(stages) if sys.stderr.isatty() else Lines()
    try:
        ended = submission.follow(run, access, show)
    finally:
        show.close()
    if ended.overhead:
        typer.echo(ended.overhead, err=True)
    submission.raise_for(ended)
    submission.raise_unless_known(ended)
    typer.echo(f"{ended.name}: {ended.outcome}", err=True)
