"""`bloomery demo …`: stories that are played for real."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from bloomery.pipelines.cli_options import WORKDIR, JsonOption, SetOption, WorkdirOption

app = typer.Typer(help="Stories that are played for real.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `drift` a command of its own while it is the only one."""


@app.command()
def drift(
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    as_json: JsonOption = False,
) -> None:
    """Serve the quickstart's champion, let the questions change, and watch the loop close.

    Five weeks of traffic are asked; in the third a new table and new ways of asking appear. The check finds the drift
    and starts one retraining, its candidate has to pass the gate, the server follows the registry. Needs a champion:
    `bloomery run quickstart` first. Exit codes: 0, or 5 if the gate refused the candidate.

    Examples:

        bloomery demo drift

        bloomery demo drift --workdir runs --json
    """
    from bloomery.monitoring.demo import drift as play

    story = play(workdir, set, lambda line: typer.echo(line, err=True))
    difference, stderr = story["recovery"]
    typer.echo(f"last week against the first two: {100 * difference:+.1f} ± {100 * stderr:.1f} points", err=True)
    typer.echo(f"page: {Path(story['page'])}", err=True)
    if as_json:
        typer.echo(json.dumps(story, ensure_ascii=False))
