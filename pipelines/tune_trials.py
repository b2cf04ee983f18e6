"""A trial of a search on a cluster, as its tasks see it: what it tries, what it came to, and which was best."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.config import canonical, packed, parameters, unpacked
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.infra.secrets import STUDIES
from bloomery.pipelines import recipe as recipes
from bloomery.pipelines import tune
from bloomery.pipelines.chain import Stage
from bloomery.pipelines.tune import Search

FIXED = ("grid", "random")
"""Samplers whose trials are known before any of them has run."""


def trial_of(number: int, settings: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """What a loop goes through: settings of stages by their name, and what no stage can be called."""
    return {"_number": number, "_settings": settings, **{one.name: packed(parameters(one.config)) for one in stages}}


def open_study(search: Mapping[str, Any]) -> list[int]:
    """Make the study of a search, if it is not there, before many ask at once; the places of its trials."""
    _study(search)
    return list(range(int(search["trials"])))


def ask(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The next trial of the study, as `trial_of` has it."""
    study, over = _study(search)
    trial = study.ask()
    chosen = {each.key: each.suggest(trial) for each in over}
    values: dict[str, Any] = canonical(unpacked(search["recipe"]))
    for key, value in chosen.items():
        recipes.apply_setting(values, tune.setting(key, value))
    stages = recipes.parse_recipe(values, Path("/")).stages
    return [trial_of(trial.number, chosen, [one for one in stages if one.name in search["stages"]])]


def tell(search: Mapping[str, Any], trial: Mapping[str, Any], metrics: str) -> dict[str, Any]:
    """What a trial came to, by the file of its measured stage's `metrics`, which the study is told where there is one.

    Raises: DataError without the measure.
    """
    stage, _, metric = search["measure"].partition("/")
    found = {name.partition("/")[2]: value for name, value in json.loads(Path(metrics).read_text()).items()}
    if metric not in found:
        raise DataError(f"--measure {search['measure']}: {stage} has {', '.join(sorted(found))}")
    number = int(trial["_number"])
    if search["sampler"] not in FIXED:
        _study(search)[0].tell(number, found[metric], skip_if_finished=True)  # a pod may have been started again
    return {"number": number, "settings": canonical(trial["_settings"]), "value": found[metric]}


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
        storage=url,
        load_if_exists=True,
        direction="maximize" if search["maximise"] else "minimize",
        # Without a seed: pods that begin alike would draw alike.
        sampler=tune.sampler_of(optuna, search["sampler"], over, None),
    )
    return study, over


def write_best(search: Mapping[str, Any], rows: Sequence[Any], best: str, page: str) -> None:
    """Write the best of `rows` to the file `best`, as JSON, and the page about all of them to `page`."""
    flat = [row for part in rows for row in (part if isinstance(part, list) else [part])]
    ended = {"state": "complete", "seconds": 0.0, "error": ""}
    told = [
        {"number": int(row["number"]), "settings": canonical(row["settings"]), "value": row["value"], **ended}
        for row in sorted(flat, key=lambda row: row["number"])
    ]
    first = (max if search["maximise"] else min)(told, key=lambda row: row["value"])
    Path(best).parent.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(Path(best), json.dumps({"measure": search["measure"], "best": first, "trials": told}))
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    keys = [Search(key) for key in first["settings"]]
    tune.write_page(Path(page), search["name"], search["measure"], keys, told, first)
