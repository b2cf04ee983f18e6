"""The search for settings: trials of a recipe up to one stage, judged by a measure of that stage.

A trial runs the DAG as far as the stage and promotes nothing. What trials have in common comes out of the store, a
trial whose validation curve is worse than the median's is ended, and the study goes on where it was.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from bloomery.components.core import artifact
from bloomery.components.core.config import digest
from bloomery.components.core.errors import ConfigError, MissingExtraError, ServiceError
from bloomery.pipelines import fork_server, launch
from bloomery.pipelines.parent_run import Trial
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)

Sampler = Literal["tpe", "random", "grid", "cmaes", "population"]
LOG_FROM = 10
"""Ratio of the ends of a range from which it is searched by order of magnitude."""
FIRST_TRIALS = 4
"""Trials that run to their end before one is compared with their median."""


class Search(NamedTuple):
    """One setting and the values that it may take: `choices`, or a range from `low` to `high`."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def suggest(self, trial: Any) -> Any:
        """The value of this setting in an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        is_log = self.low > 0 and self.high / self.low >= LOG_FROM
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=is_log)
        return trial.suggest_float(self.key, self.low, self.high, log=is_log)

    def ends(self) -> tuple[Any, ...]:
        """The values that are tried on the recipe before the search begins."""
        return self.choices or (self.low, self.high)


class Study(NamedTuple):
    """What `search` found: the page about it, its trials in order, and the best of them."""

    page: Path
    trials: list[dict[str, Any]]
    """number, settings, value (of the measure; None if it did not come to one), state, seconds."""
    best: dict[str, Any] | None


def parse_over(text: str) -> Search:
    """`stage.key=a..b` or `stage.key=a,b,c`; raises ConfigError if it is neither."""
    key, _, values = text.partition("=")
    low, dots, high = values.partition("..")
    if dots and key:
        first, last = _value(low), _value(high)
        if all(isinstance(end, int | float) for end in (first, last)) and first < last:
            return Search(key, low=first, high=last)
    elif key and "," in values:
        return Search(key, tuple(_value(value.strip()) for value in values.split(",")))
    elif key and values:
        raise ConfigError(f"--over {text}: found one value; give two or more, or set it by --set {text}")
    raise ConfigError(
        f"--over {text}: expected stage.key=low..high or stage.key=a,b,c, such as --over sft.learning_rate=1e-5..1e-3"
    )


def _value(text: str) -> Any:
    """A value as YAML has it, and `1e-5`, which YAML takes for a word, as a number."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return yaml.safe_load(text)


def search(
    recipe: str,
    settings: Sequence[str],
    over: Sequence[Search],
    workdir: Path,
    *,
    trials: int,
    sampler: Sampler = "tpe",
    measure: str = "",
    maximise: bool = False,
    storage: str = "",
    show: Callable[[dict[str, Any]], None] = lambda event: None,
    told: Callable[[dict[str, Any]], None] = lambda trial: None,
) -> Study:
    """Try settings of `recipe`, until the study has as many finished trials as `trials`.

    `measure` is `stage/metric`; none: `validation_loss` of the last stage that a searched key names. `storage` is the
    URL of Optuna's database; none: SQLite in `workdir`. `show` gets the events of a trial, `told` each trial that
    begins to run or has ended.
    Raises: ConfigError if a key or an end of its values is refused by the recipe, or no trial has the measure;
            ServiceError if the database does not answer.
    """
    optuna = optuna_quietly()
    base, stage, metric = checked(recipe, settings, over, measure, prepare=True)
    name = study_name(base, settings, over, f"{stage}/{metric}")
    folder = workdir.absolute() / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    chooser = functools.partial(sampler_of, optuna, sampler, over)
    with answering("--storage"):
        study = optuna.create_study(
            study_name=name,
            storage=with_driver(storage) if storage else f"sqlite:///{folder / 'studies.db'}",
            load_if_exists=True,
            direction="maximize" if maximise else "minimize",
            sampler=chooser(base.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS),
        )

    def run(trial: Any) -> float:
        chosen = [setting(each.key, each.suggest(trial)) for each in over]
        try:
            tried = launch.load(recipe, [*settings, *chosen], prepare=True)
        except ConfigError as error:  # each of them goes with the recipe, and not all of them together
            raise _failed(trial, str(error)) from None
        told(_row(study.trials[trial.number]))
        # Within Optuna, which would take KeyboardInterrupt for a trial that failed, and never draw its settings again.
        with fork_server.interruptible(end_tasks):
            return _run(trial, name, tried, workdir, stage, metric, show)

    states = optuna.trial.TrialState
    if sampler == "grid":
        trials = min(trials, math.prod(len(each.choices) for each in over))
    with fork_server.running() as end_tasks:
        while len(study.get_trials(states=(states.COMPLETE, states.PRUNED, states.FAIL))) < trials:
            if sampler != "grid":  # each trial by a seed of its own: a search that goes on draws no trial again
                study.sampler = chooser(base.seed + len(study.trials))
            tell = [lambda _, trial: told(_row(trial))]
            study.optimize(run, n_trials=1, catch=(TrialFailedError,), callbacks=tell)
    rows = [_row(trial) for trial in study.trials]
    finished = [row for row in rows if row["state"] == "complete"]
    best = (max if maximise else min)(finished, key=lambda row: row["value"]) if finished else None
    page = folder / f"{name}.html"
    write_page(page, name, f"{stage}/{metric}", over, rows, best)
    return Study(page, rows, best)


def checked(
    recipe: str, settings: Sequence[str], over: Sequence[Search], measure: str, *, prepare: bool
) -> tuple[Recipe, str, str]:
    """(the recipe without what is searched for, the stage and the metric that trials are judged by).

    Raises: ConfigError if a key stands twice or an end of its values is refused by the recipe, or the measure is none.
    """
    if twice := [key for key, count in Counter(each.key for each in over).items() if count > 1]:
        raise ConfigError(f"--over: {', '.join(twice)} is given twice; give all its values at once")
    for each in over:
        for value in each.ends():
            launch.load(recipe, [*settings, setting(each.key, value)], prepare=False)
    base = launch.load(recipe, settings, prepare=prepare)
    return base, *_measure(base, over, measure)


def study_name(base: Recipe, settings: Sequence[str], over: Sequence[Search], measure: str) -> str:
    """The name under which the trials of a search are kept: another search has another."""
    return f"{base.name}-{digest([list(settings), [list(each) for each in over], *measure.split('/')])[:12]}"


class TrialFailedError(Exception):
    """A trial that ended with an error of the run; the study goes on."""


def optuna_quietly() -> Any:
    """Optuna, which says nothing by itself. Raises: MissingExtraError."""
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("bloomery tune: pip install 'bloomery[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def with_driver(url: str) -> str:
    """The URL of a database with the driver of PostgreSQL that our images hold: SQLAlchemy 2.1 would take another."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)


@contextlib.contextmanager
def answering(told: str) -> Iterator[None]:
    """Tell the errors of the database of studies, which is named by what is `told`, as ours."""
    optuna_quietly()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{told}: the driver of this database is not installed: {error.__cause__ or error}; of PostgreSQL: pip "
            "install psycopg2-binary"
        ) from None
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).split("\n")[0][:300]
        raise ServiceError(f"{told}: the database of the study did not do its part: {reason}") from error


def setting(key: str, value: Any) -> str:
    """`key=value` as `--set` takes it."""
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"


def _measure(recipe: Recipe, over: Sequence[Search], measure: str) -> tuple[str, str]:
    names = [stage.name for stage in recipe.stages]
    if measure:
        stage, _, metric = measure.partition("/")
        if stage not in names or not metric:
            raise ConfigError(f"--measure {measure}: expected stage/metric, the stage one of {', '.join(names)}")
        return stage, metric
    searched = [name for name in names if any(each.key.split(".")[0] == name for each in over)]
    if not searched:
        raise ConfigError(f"--over names no stage ({', '.join(names)}), so --measure has to: stage/metric")
    return searched[-1], "validation_loss"


def sampler_of(optuna: Any, name: Sampler, over: Sequence[Search], seed: int | None) -> Any:
    """Optuna's sampler. Raises: ConfigError for a grid of a range."""
    if name == "grid":
        if ranges := [each.key for each in over if not each.choices]:
            raise ConfigError(f"--sampler grid: {', '.join(ranges)} is a range; a grid needs lists: key=a,b,c")
        return optuna.samplers.GridSampler({each.key: list(each.choices) for each in over}, seed=seed)
    kinds = {"tpe": "TPESampler", "random": "RandomSampler", "cmaes": "CmaEsSampler", "population": "NSGAIISampler"}
    more = {"population_size": 8} if name == "population" else {}
    return getattr(optuna.samplers, kinds[name])(seed=seed, **more)


def _run(
    trial: Any,
    study: str,
    recipe: Recipe,
    workdir: Path,
    stage: str,
    metric: str,
    show: Callable[[dict[str, Any]], None],
) -> float:
    """Run one trial of `study`; returns the measure. Its process is ended where its validation curve says that it is a
    bad one."""
    import optuna

    pruned, pids = False, {}

    def watch(event: dict[str, Any]) -> None:
        nonlocal pruned
        show(event)
        if event["stage"] != stage:
            return
        if event["event"] == "started":
            pids[stage] = event["pid"]
        loss = event.get("metrics", {}).get("eval_loss") if event["event"] == "progress" else None
        if loss is not None and metric == "validation_loss":
            trial.report(loss, event["step"])
            if trial.should_prune():
                pruned = True
                with contextlib.suppress(ProcessLookupError):  # it may have just ended by itself
                    os.kill(pids[stage], signal.SIGKILL)

    summary = launch.run_local(recipe, workdir, watch, until=stage, trial=Trial(study, trial.params))
    trial.set_user_attr("run", summary["run"])
    if pruned:
        raise optuna.TrialPruned
    if summary["error"]:
        raise _failed(trial, summary["error"])
    found = {name.partition("/")[2]: value for name, value in summary["stages"][stage].items()}
    if metric not in found:
        raise ConfigError(f"--measure {stage}/{metric}: {stage} has {', '.join(sorted(found))}")
    if not math.isfinite(found[metric]):
        raise _failed(trial, f"{stage}/{metric} is {found[metric]}")
    return found[metric]


def _failed(trial: Any, reason: str) -> TrialFailedError:
    """The error that ends one trial and not the study, which keeps why."""
    trial.set_user_attr("error", reason)
    return TrialFailedError(reason)


def _row(trial: Any) -> dict[str, Any]:
    return {
        "number": trial.number,
        "settings": trial.params,
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "state": trial.state.name.lower(),
        "seconds": trial.duration.total_seconds() if trial.duration else 0.0,
        "error": trial.user_attrs.get("error", ""),
    }


def write_page(
    page: Path, name: str, measure: str, over: Sequence[Search], rows: list[dict[str, Any]], best: Any
) -> None:
    """Write the page about a search to the file `page`."""
    import jinja2
    from markupsafe import Markup

    from bloomery.pipelines import charts

    finished = [row for row in rows if row["state"] == "complete"]
    pictures = []
    for each in over:
        values = [row["settings"][each.key] for row in finished]
        if len(set(map(str, values))) < 2 or not all(isinstance(value, int | float) for value in values):
            continue
        is_log = min(values) > 0 and max(values) / min(values) >= LOG_FROM
        points = [
            charts.Point(
                f"{row['number']}",
                math.log10(value) if is_log else float(value),
                row["value"],
                math.nan,
                math.nan,
                chosen=row is best,
            )
            for row, value in zip(finished, values, strict=True)
        ]
        form = (lambda value: charts.number(10**value)) if is_log else charts.number
        pictures.append(Markup(charts.scatter(each.key, points, each.key, measure, form, charts.number)))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = charts.number
    keys = [each.key for each in over]
    text = environment.get_template("tune_template.html").render(
        name=name, measure=measure, keys=keys, rows=rows, best=best, pictures=pictures
    )
    artifact.write_atomically(page, text)
