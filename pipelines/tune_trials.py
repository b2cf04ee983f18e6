"""A trial of a search on a cluster, as its tasks see it: what it tries, what it came to, and which was best."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, tracking
from bloomery.components.core.config import canonical, packed, parameters, unpacked
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.infra.secrets import STUDIES
from bloomery.pipelines import recipe as recipes
from bloomery.pipelines import recipe_files, tune
from bloomery.pipelines.chain import Stage
from bloomery.pipelines.tune import Search

FIXED = ("grid", "random")
"""Samplers whose trials are known before any of them has run."""


def trial_of(number: int, settings: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """What a loop goes through: settings of stages by their name, and what no stage can be called."""
    names = {name_in_trial(one): f"{one.name}_of_trial_{number}" for one in stages}
    configs = {one.name: packed(parameters(one.config)) for one in stages}
    return {"_number": number, "_settings": settings, **names, **configs}


def name_in_trial(stage: Stage) -> str:
    """The key under which a trial has the name that MLflow knows its run of `stage` by; no stage has capitals."""
    return f"NAME_{stage.name}"


def open_study(search: Mapping[str, Any]) -> list[int]:
    """Make the study of a search, if it is not there, before many ask at once; the places of its trials."""
    with tune.answering(STUDIES):
        _study(search)
    return list(range(int(search["trials"])))


def ask(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The next trial of the study, as `trial_of` has it."""
    with tune.answering(STUDIES):
        study, over = _study(search)
        trial = study.ask()
        chosen = {each.key: each.suggest(trial) for each in over}
    values: dict[str, Any] = canonical(unpacked(search["recipe"]))
    for key, value in chosen.items():
        recipe_files.apply(values, tune.setting(key, value), recipes.Recipe.model_fields)
    stages = recipes.parse_recipe(values, Path("/")).stages
    return [trial_of(trial.number, chosen, [one for one in stages if one.name in search["stages"]])]


def tell(search: Mapping[str, Any], trial: Mapping[str, Any], metrics: str) -> dict[str, Any]:
    """What a trial came to, by the file of its measured stage's `metrics`, which the study is told where there is one:
    its number, its settings, and `value`, or `error` where it failed or the measure is no finite number.

    Raises: DataError without the measure.
    """
    stage, _, metric = search["measure"].partition("/")
    told = json.loads(Path(metrics).read_text())
    found = {name.partition("/")[2]: value for name, value in told.items() if name != "failed"}
    if "failed" not in told and metric not in found:
        raise DataError(f"--measure {search['measure']}: {stage} has {', '.join(sorted(found))}")
    number, value = int(trial["_number"]), found.get(metric, math.nan)
    row: dict[str, Any] = {"number": number, "settings": canonical(trial["_settings"])}
    is_good = math.isfinite(value)
    row |= {"value": value} if is_good else {"error": told.get("failed", f"{search['measure']} is {value}")}
    if search["sampler"] not in FIXED:
        with tune.answering(STUDIES):
            study = _study(search)[0]
            # A pod may have been started again.
            study.tell(number, value if is_good else None, state=_state(is_good), skip_if_finished=True)
    return row


def _state(is_good: bool) -> Any:
    states = tune.optuna_quietly().trial.TrialState
    return states.COMPLETE if is_good else states.FAIL


def _study(search: Mapping[str, Any]) -> tuple[Any, list[Search]]:
    """The study of a search, in the database that STUDIES names, and what it varies. Raises: ConfigError without it."""
    optuna, url = tune.optuna_quietly(), os.environ.get(STUDIES)
    if not url:
        raise ConfigError(
            f"{STUDIES}: not set; expected the URL of a database that every pod reaches, such as "
            f"postgresql://user:password@host/studies; give it as {STUDIES} in the Secret of the recipe's resources"
        )
    over = [tune.parse_over(text) for text in search["over"]]
    study = optuna.create_study(
        study_name=search["name"],
        storage=tune.with_driver(url),
        load_if_exists=True,
        direction="maximize" if search["maximise"] else "minimize",
        # Without a seed: pods that begin alike would draw alike.
        sampler=tune.sampler_of(optuna, search["sampler"], over, None),
    )
    return study, over


def write_best(search: Mapping[str, Any], rows: Sequence[Any], best: str, page: str) -> None:
    """Write the best of `rows` to the file `best`, as JSON, and the page about all of them to `page`; the MLflow run of
    the search gets it too, as its last part. Raises: DataError if every trial has failed."""
    flat = [row for part in rows for row in (part if isinstance(part, list) else [part])]
    told = [
        {
            "number": int(row["number"]),
            "settings": canonical(row["settings"]),
            "value": row.get("value"),
            "state": "fail" if "error" in row else "complete",
            "seconds": 0.0,
            "error": row.get("error", ""),
        }
        for row in sorted(flat, key=lambda row: row["number"])
    ]
    finished = [row for row in told if row["state"] == "complete"]
    first = (max if search["maximise"] else min)(finished, key=lambda row: row["value"]) if finished else None
    with tracking.track("best", {"trial": first["number"], **first["settings"]} if first else {}) as tracker:
        if first is None:
            raise DataError(f"all {len(told)} trials have failed; the first: {told[0]['error']}")
        Path(best).parent.mkdir(parents=True, exist_ok=True)
        artifact.write_atomically(Path(best), json.dumps({"measure": search["measure"], "best": first, "trials": told}))
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        keys = [Search(key) for key in first["settings"]]
        tune.write_page(Path(page), search["name"], search["measure"], keys, told, first)
        tracker.finish({search["measure"]: first["value"]})
