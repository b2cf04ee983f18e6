"""Recurring checks and retrainings: recurring runs of Kubeflow Pipelines, or lines for cron on one machine."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import kubeflow, launch, recipe_files
from bloomery.pipelines.kubeflow import Access, connected
from bloomery.pipelines.recipe import Recipe

MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
DAYS = "SUN MON TUE WED THU FRI SAT".split()
FIELDS = {
    "second": (0, 59, []),
    "minute": (0, 59, []),
    "hour": (0, 23, []),
    "day": (1, 31, []),
    "month": (1, 12, MONTHS),
    "weekday": (0, 6, DAYS),
}
"""Of each field of a cron expression the least, the most, and the names of what lies between; what is written with
these both Kubeflow Pipelines (robfig/cron) and a machine's cron take."""
PART = re.compile(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/([0-9]+))?")


def six_fields(cron: str) -> str:
    """A cron expression as Kubeflow Pipelines takes it, seconds first; five fields get second 0.

    Raises: ConfigError for another number of fields, or a field that names no time.
    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise ConfigError(
            f"cron {cron!r}: found {len(fields)} fields; expected `minute hour day month weekday`, or these after the "
            "seconds"
        )
    fields = fields if len(fields) == 6 else ["0", *fields]
    for what, field in zip(FIELDS, fields, strict=True):
        if not all(_is_time(part, *FIELDS[what]) for part in field.split(",")):
            least, most, names = FIELDS[what]
            named = f" or {names[0]} to {names[-1]}" if names else ""
            raise ConfigError(
                f"cron {cron!r}: {field} is no {what}; expected {least} to {most}{named}, as one, `a,b`, `a-b` or `*`, "
                "or a step of these, such as `*/2`"
            )
    return " ".join(fields)


def _is_time(part: str, least: int, most: int, names: list[str]) -> bool:
    """Whether a part of a field of a cron expression names times between `least` and `most`."""
    found = PART.fullmatch(part)
    if found is None or found[3] == "0" or (found[3] and found[1] and not found[2]):  # a step of one
        return False
    given = [one.upper() for one in found.groups()[:2] if one is not None]
    numbers = [least + names.index(one) if one in names else int(one) if one.isdecimal() else -1 for one in given]
    return all(least <= number <= most for number in numbers) and numbers == sorted(numbers)


def five_fields(cron: str) -> str:
    """A cron expression as a machine's cron takes it. Raises: ConfigError where seconds are not 0, which it has not."""
    seconds, *rest = six_fields(cron).split()
    if seconds != "0":
        raise ConfigError(f"cron {cron!r}: the second is {seconds}; cron on a machine knows minutes alone, set it to 0")
    return " ".join("*" if field == "?" else field for field in rest)


def cron_lines(
    recipe: str, workdir: Path, log: str | None, check: str | None, retrain: str | None, settings: Iterable[str] = ()
) -> list[str]:
    """Lines for `crontab`; each appends its output to a file in `workdir`."""
    program = shutil.which("bloomery") or str(Path(sys.executable).with_name("bloomery"))
    place = workdir.absolute()
    found = str(Path(recipe).absolute()) if Path(recipe).is_file() else recipe
    commands = {
        "check.log": (check, ["monitor", "check", found, "--log", _absolute(log or "")]),
        "retrain.log": (retrain, ["run", found]),
    }
    options = ["--workdir", str(place), *(part for setting in settings for part in ("--set", setting))]
    return [
        f"{five_fields(cron)} {_cron_command([program, *words, *options], place / file)}"
        for file, (cron, words) in commands.items()
        if cron is not None
    ]


def _cron_command(words: list[str], output: Path) -> str:
    line = f"{shlex.join(words)} >> {shlex.quote(str(output))} 2>&1"
    return line.replace("%", r"\%")  # which cron takes for the end of the command


def _absolute(log: str) -> str:
    return log if "://" in log else str(Path(log).absolute())


def reached(check: str | None, log: str | None, workdir: str) -> None:
    """Raise ConfigError for a place that a check on a cluster could not reach."""
    example = "give the URI of a store, such as s3://bucket/bloomery"
    if check is not None and "://" not in workdir:
        raise ConfigError(
            f"--workdir {workdir or '(none)'}: a check keeps its decisions there, and no pod of a cluster reaches it; "
            f"{example}"
        )
    if check is not None and "://" not in (log or ""):
        raise ConfigError(f"--log {log}: a check reads it, and no pod of a cluster reaches it; {example}/predictions")


def schedule(
    recipe: Recipe,
    named: str | None,
    log: str | None,
    check: str | None,
    retrain: str | None,
    access: Access,
    *,
    workdir: str = "",
    settings: Sequence[str] = (),
) -> dict[str, str]:
    """Make the recurring runs `<recipe>-drift-check` and `<recipe>-retraining` for the cron expressions given; returns
    their ids by name.

    One at a time and without catch-up: a check or retraining that was missed is made up for by the next. There is no
    call to change a recurring run, so the new one is made before those of the same name are deleted: what fails
    between the two leaves one check too many, which starts nothing twice, and not none.
    A check retrains by the recipe `named` in its image, with the `--set` values `settings`; where it has no name there,
    by `recipe` as it is now, which goes with the check. `workdir` is where checks keep decisions and slices, the URI of
    a store.
    Raises: ServiceError if the API does not answer, ConfigError for what it refuses, or if pods could not reach
    `workdir` or `log`.
    """
    from bloomery.pipelines import drift_check

    reached(check, log, workdir)
    wanted: dict[str, tuple[str, Any]] = {}
    if check is not None:
        wanted[f"{recipe.name}-drift-check"] = (
            six_fields(check),
            drift_check.build(recipe, named or recipe_files.dumped(recipe), log or "", workdir, settings),
        )
    if retrain is not None:
        wanted[f"{recipe.name}-retraining"] = six_fields(retrain), launch.built(recipe)
    made = {}
    with tempfile.TemporaryDirectory() as folder, connected(access) as client:
        with kubeflow.quietly():
            experiment = client.create_experiment(recipe.name)
        for name, (cron, pipeline) in wanted.items():
            package = f"{folder}/{name}.yaml"
            launch.compile_pipeline(pipeline, Path(package))
            old = _recurring_runs(client, name)
            new = client.create_recurring_run(
                experiment_id=experiment.experiment_id,
                job_name=name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                pipeline_package_path=package,
            )
            made[name] = new.recurring_run_id
            for identity in old:
                client.delete_recurring_run(identity)
    return made


def _recurring_runs(client: Any, name: str) -> list[str]:
    """Ids of the recurring runs of that name, in the profile of whoever asks: unlike of runs, kfp's client does not put
    it in by itself."""
    found: list[str] = []
    token = ""
    while True:
        page = client.list_recurring_runs(
            page_token=token,
            page_size=100,
            namespace=client.get_user_namespace() or None,
            filter=kubeflow.equals("display_name", name),
        )
        found += [run.recurring_run_id for run in page.recurring_runs or []]
        token = page.next_page_token
        if not token:
            return found
