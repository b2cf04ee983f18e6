"""`bloomery models …`: the registry from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.pipelines.cli_options import WORKDIR, JsonOption, WorkdirOption

app = typer.Typer(help="The model registry: list, promote, roll back.", no_args_is_help=True)


@app.command("list")
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
    found = with_registry(workdir, lambda registry: registry.versions(name))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for entry in found:
        typer.echo(
            f"{entry['name']:<24} version {entry['version']:<4} {', '.join(entry['aliases']):<22} {entry['source']}"
        )
    if not found:
        typer.echo("no registered models yet")


@app.command("promote")
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

    typer.echo(with_registry(workdir, promote))


@app.command("rollback")
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

    typer.echo(with_registry(workdir, rollback))


def with_registry(workdir: Path, action: Callable[[Any], Any]) -> Any:
    """What `action` returns for the registry of `workdir`; ConfigError if there is none yet."""
    from bloomery.components.core import registry
    from bloomery.components.core.errors import ConfigError
    from bloomery.pipelines.launch import tracking_uri

    uri = tracking_uri(workdir)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"{workdir}: no MLflow database there; run a recipe first, or give the --workdir of a run")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return action(registry)
