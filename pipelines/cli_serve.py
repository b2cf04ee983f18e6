"""`bloomery serve`: the champion behind HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from bloomery.infra import surroundings
from bloomery.pipelines.cli_models import with_registry
from bloomery.pipelines.cli_options import WORKDIR, RecipeArgument, SetOption, WorkdirOption


def serve(
    recipe: RecipeArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    log: Annotated[
        str | None, typer.Option(help="Prediction log: folder or URI such as s3://logs/shop; else WORKDIR/predictions.")
    ] = None,
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Answer OpenAI-style chat completions from the champion, and follow it when the registry's alias moves.

    POST /v1/chat/completions, POST /v1/feedback, GET /v1/models, GET /health. SIGTERM ends it when what was asked is
    answered.

    Examples:

        bloomery serve quickstart --port 8000

        bloomery serve my.yaml --host 0.0.0.0 --log s3://logs/predictions --set serving.max_batch=64
    """
    from bloomery.pipelines import launch

    loaded = launch.load(recipe, set, prepare=False)
    surroundings.enter()
    from bloomery.monitoring.serving import serve as run

    target = log or str(workdir / "predictions")
    with_registry(workdir, lambda _: run(loaded.registered_model, target, loaded.serving, host=host, port=port))
