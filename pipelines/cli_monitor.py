"""`bloomery monitor …`: drift from the command line."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.pipelines.cli_models import with_registry
from bloomery.pipelines.cli_options import WORKDIR, JsonOption, RecipeArgument, SetOption, StateOption, WorkdirOption

LogOption = Annotated[
    str, typer.Option(help="Prediction log; or a file, folder or URI of JSONL or Parquet rows of prediction/2.")
]
StartOption = Annotated[bool, typer.Option(help="Start the retraining that the policy asks for.")]

app = typer.Typer(help="Drift of the served traffic, and the retraining that it starts.", no_args_is_help=True)


@app.command("check")
def monitor_check(
    recipe: RecipeArgument,
    log: LogOption,
    workdir: StateOption = str(WORKDIR),
    set: SetOption = [],  # noqa: A002, B006
    start: StartOption = True,
    as_json: JsonOption = False,
) -> None:
    """Judge the newest full window of the prediction log, and start the one retraining that it may call for.

    Examples:

        bloomery monitor check quickstart --log predictions

        bloomery monitor check my.yaml --log s3://logs/predictions/ --no-start --json
    """
    result = _check(recipe, log, workdir, set, start)
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else _told(result))


@app.command("watch")
def monitor_watch(
    recipe: RecipeArgument,
    log: LogOption,
    workdir: StateOption = str(WORKDIR),
    set: SetOption = [],  # noqa: A002, B006
    start: StartOption = True,
    every: Annotated[float, typer.Option(min=1, help="Seconds between the start of one check and of the next.")] = 300,
) -> None:
    """Check again and again until interrupted (Ctrl-C or SIGTERM), and tell what changed.

    A store that does not answer, or a log without rows yet, is told and tried again at the next check.

    Examples:

        bloomery monitor watch quickstart --log predictions --every 60

        bloomery monitor watch my.yaml --log s3://logs/predictions/ --no-start
    """
    from bloomery.monitoring.watch import watch

    watch(lambda: _told(_check(recipe, log, workdir, set, start)), every, typer.echo)


@app.command("explain")
def monitor_explain(
    window: Annotated[
        str | None, typer.Argument(help="Window as its page names it; the last checked if left out.")
    ] = None,
    workdir: StateOption = str(WORKDIR),
    as_json: JsonOption = False,
) -> None:
    """Print the page of a decision: what moved, old rows and new ones, what was done.

    Examples:

        bloomery monitor explain

        bloomery monitor explain shop-sql-3-1f0e9a52-w0004 --workdir runs
    """
    from bloomery.monitoring.check import newest_page
    from bloomery.monitoring.home import at

    with at(workdir) as home:
        home.fetch("*/decision.json")
        page = newest_page(home, window)
        home.fetch(f"{page.parent.name}/decision.md")
        file = page.with_suffix(".json") if as_json else page
        text = file.read_text(encoding="utf-8")
    typer.echo(json.dumps(json.loads(text), ensure_ascii=False) if as_json else text)


@app.command("hold")
def monitor_hold(
    reason: Annotated[str, typer.Option(help="Why; it stands on every page until the hold is lifted.")],
    until: Annotated[
        str | None, typer.Option(help="When it ends by itself, ISO 8601; UTC where it names no zone.")
    ] = None,
    who: Annotated[str | None, typer.Option(help="On whose word; the user of this process if left out.")] = None,
    workdir: StateOption = str(WORKDIR),
) -> None:
    """Start no retraining of this workdir, whatever drifts; who, when and why is kept.

    Examples:

        bloomery monitor hold --reason "spam attack, ticket 812"

        bloomery monitor hold --reason freeze --until 2027-01-04T09:00+09:00 --workdir runs
    """
    _record_hold(workdir, is_held=True, reason=reason, until=until, who=who)


@app.command("resume")
def monitor_resume(
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    who: Annotated[str | None, typer.Option(help="On whose word; the user of this process if left out.")] = None,
    workdir: StateOption = str(WORKDIR),
) -> None:
    """Lift the hold: the next check may start a retraining again.

    Examples:

        bloomery monitor resume

        bloomery monitor resume --reason "attack is over" --workdir runs
    """
    _record_hold(workdir, is_held=False, reason=reason, until=None, who=who)


@app.command("replay")
def monitor_replay(
    recipe: RecipeArgument,
    traffic: Annotated[
        str,
        typer.Option(help="JSONL rows with `time` and the fields of the task's template; ${quickstart}: the demo's."),
    ],
    log: Annotated[str, typer.Option(help="Prediction log to append to: a folder, or a URI such as s3://logs/shop.")],
    task: Annotated[str, typer.Option(help="Task of the recipe whose template asks the questions.")],
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
) -> None:
    """Answer recorded traffic with the champion, and append to the prediction log that `check` reads.

    Examples:

        bloomery monitor replay quickstart --task shop_sql --traffic '${quickstart}/traffic.jsonl' --log predictions

        bloomery monitor replay my.yaml --task faq --traffic april.jsonl --log s3://logs/faq --workdir runs
    """
    from bloomery.components.core.errors import ConfigError
    from bloomery.components.core.modelling import checkpoints
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
    with tempfile.TemporaryDirectory(prefix="bloomery-champion-") as copy:
        model = Path(champion.source.removeprefix("file://"))
        if not model.is_dir():
            model = Path(copy) / "model"
            checkpoints.fetch(champion.source, model)
        count = replay(
            launch.placed(traffic),
            model,
            log,
            asked.templates[0],
            model_name=name,
            model_version=str(champion.version),
            max_new_tokens=asked.max_new_tokens,
        )
    typer.echo(f"{count} predictions of {name} version {champion.version} written to {log}")


def _check(recipe: str, log: str, workdir: str, settings: list[str], start: bool) -> dict[str, Any]:
    from bloomery.monitoring.check import check
    from bloomery.monitoring.home import at
    from bloomery.pipelines import launch
    from bloomery.pipelines.recipe_files import find

    loaded = launch.load(recipe, settings, prepare=False)
    uri = launch.tracking_uri(Path(workdir))
    if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file():
        os.environ["MLFLOW_TRACKING_URI"] = uri  # where the checkpoint lies that embeds the prompts
    with at(workdir) as home:
        return check(find(recipe), home, log, loaded.monitoring, settings=settings, start=start)


def _told(result: dict[str, Any]) -> str:
    page = f"\npage: {result['decision_page']}" if result["window"] else ""
    return f"{result['action']}: {result['reason']}{page}"


def _record_hold(workdir: str, *, is_held: bool, reason: str, until: str | None, who: str | None) -> None:
    from datetime import UTC, datetime

    from bloomery.components.core.errors import ConfigError
    from bloomery.monitoring import hold
    from bloomery.monitoring.home import at
    from bloomery.monitoring.prediction_log import parse_time

    try:
        end = parse_time(until) if until else None
    except ValueError:
        raise ConfigError(f"--until {until}: expected ISO 8601, such as 2027-01-04T09:00+09:00") from None
    entry = hold.Hold(is_held=is_held, who=who or hold.whoever(), time=datetime.now(UTC), reason=reason, until=end)
    with at(workdir) as home:
        hold.record(home.workdir, entry)
        kept = home.told(hold.log_file(home.workdir))
    typer.echo(f"{'held' if is_held else 'resumed'} by {entry.who}; kept in {kept}")
