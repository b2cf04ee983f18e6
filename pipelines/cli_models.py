"""`bloomery models …`: the registry from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.pipelines.cli_options import WORKDIR, JsonOption, WorkdirOption

app = typer.Typer(help="The model registry: list, show, promote, roll back, audit.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Registered model.")]
WhyOption = Annotated[str, typer.Option(help="Reason, for the audit record.")]


@app.command("list")
def models_list(
    name: Annotated[str | None, typer.Argument(help="Registered model; all if left out.")] = None,
    workdir: WorkdirOption = WORKDIR,
    as_json: JsonOption = False,
) -> None:
    """List registered versions and their aliases, newest first, and whether MLflow's aliases differ from the record.

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
    for told in dict.fromkeys(entry["differs"] for entry in found):
        if told:
            typer.echo(told, err=True)
    if not found:
        typer.echo("no registered models yet")


@app.command("show")
def models_show(
    name: NameArgument,
    version: Annotated[str, typer.Argument(help="Version, or one of champion, previous, candidate.")] = "champion",
    workdir: WorkdirOption = WORKDIR,
) -> None:
    """Print the model card of a version: data, metrics with their errors, limits, licence, footprint.

    Examples:

        bloomery models show shop-sql

        bloomery models show shop-sql 2 --workdir runs
    """
    typer.echo(with_registry(workdir, lambda registry: registry.card(name, version)))


@app.command("audit")
def models_audit(name: NameArgument, workdir: WorkdirOption = WORKDIR, as_json: JsonOption = False) -> None:
    """List every change of champion, newest first: who, when, from, to, and why.

    Examples:

        bloomery models audit shop-sql

        bloomery models audit shop-sql --workdir runs --json
    """
    found = with_registry(workdir, lambda registry: registry.audit(name))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for entry in found:
        change = f"{entry['from'] or 'none'} -> {entry['to']}"
        verdict = f" (verdict {entry['verdict'][:12]})" if entry["verdict"] else ""
        typer.echo(f"{entry['when']}  {entry['kind']:<8} {change:<12} {entry['who']}: {entry['why']}{verdict}")
    if not found:
        typer.echo(f"{name}: its champion never changed")


@app.command("promote")
def models_promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(help="Version to make the champion.")],
    workdir: WorkdirOption = WORKDIR,
    why: WhyOption = "promoted by hand",
) -> None:
    """Make a registered version the champion by hand; the old champion becomes `previous`.

    Examples:

        bloomery models promote shop-sql 2

        bloomery models promote shop-sql 1 --why "the new one is too slow" --workdir runs
    """

    def promote(registry: Any) -> str:
        known = [entry["version"] for entry in registry.versions(name)]
        if version not in known:
            from bloomery.components.core.errors import ConfigError

            raise ConfigError(f"{name}: no version {version}; known: {', '.join(known) or 'none'}")
        registry.promote(name, version, expected_champion=registry.champion(name), why=why, kind="manual")
        return f"{name}: champion is version {version}"

    typer.echo(with_registry(workdir, promote))


@app.command("rollback")
def models_rollback(name: NameArgument, workdir: WorkdirOption = WORKDIR, why: WhyOption = "rollback by hand") -> None:
    """Return to the champion before the present one; once more: to the one before that.

    It never goes forward again to what was rolled back from; `bloomery models promote` does.

    Examples:

        bloomery models rollback shop-sql

        bloomery models rollback shop-sql --why "wrong answers since noon" --workdir runs
    """

    def rollback(registry: Any) -> str:
        old, new = registry.rollback(name, why)
        return f"{name}: champion is version {new} again, no longer version {old}"

    typer.echo(with_registry(workdir, rollback))


def with_registry(workdir: Path, action: Callable[[Any], Any]) -> Any:
    """What `action` returns for the registry of `workdir`; ConfigError if there is none yet."""
    from bloomery.components.core.errors import ConfigError
    from bloomery.components.core.registry import registry
    from bloomery.pipelines.launch import tracking_uri

    uri = tracking_uri(workdir)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"{workdir}: no MLflow database there; run a recipe first, or give the --workdir of a run")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return action(registry)
