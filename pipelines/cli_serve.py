"""`bloomery serve`: the champion behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bloomery.components.core.errors import ConfigError
from bloomery.infra import surroundings
from bloomery.pipelines.cli_models import with_registry
from bloomery.pipelines.cli_options import WORKDIR, RecipeArgument, SetOption, WorkdirOption


def serve(
    recipe: RecipeArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    log: Annotated[
        str | None, typer.Option(help="Prediction log: folder or URI such as s3://logs/shop; else WORKDIR/predictions.")
    ] = None,
    adapter: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATH",
            help="Adapter that answers under its own name, from a PEFT folder or a stage's model; repeatable.",
        ),
    ] = [],  # noqa: B006
    base: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder to serve in place of the champion: the one the adapters were trained on."),
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

        bloomery serve my.yaml --base models/base --adapter law=runs/law/sft --adapter shop=runs/shop/adapter
    """
    from bloomery.pipelines import launch

    adapters = named_adapters(adapter)
    loaded = launch.load(recipe, set, prepare=False, reads_data=False)
    surroundings.enter()
    from bloomery.monitoring.serving import serve as run

    target = log or str(workdir / "predictions")
    name, config, consents = loaded.registered_model, loaded.serving, loaded.trust_remote_code

    def answer(_: object) -> None:
        run(name, target, config, host=host, port=port, adapters=adapters, base=base, consents=consents)

    if base is None:
        with_registry(workdir, answer)
    else:
        answer(None)


def named_adapters(given: list[str]) -> dict[str, Path]:
    """Folders by name of `NAME=PATH`. Raises: ConfigError for one that is not so, or a name that is given twice."""
    adapters: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in adapters:
            told = "is given twice" if name in adapters else "is no NAME=PATH"
            raise ConfigError(f"--adapter {text}: {told}; give each adapter a name of its own and its folder")
        adapters[name] = Path(path)
    return adapters
