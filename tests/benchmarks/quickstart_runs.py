"""Runs of the quickstart's chain with other stages at its end, for benchmarks that compare them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def recipe(name: str, last: str) -> dict[str, Any]:
    """The quickstart's as `name`, to its stage `last`: nothing is quantised, and nothing watched."""
    whole = yaml.safe_load((ROOT / "pipelines/recipes/quickstart.yaml").read_text(encoding="utf-8"))
    names = [stage if isinstance(stage, str) else next(iter(stage)) for stage in whole["stages"]]
    stages = whole["stages"][: names.index(last) + 1]
    return {**whole, "stages": stages, "quantisation": [], "monitoring": {}, "name": name}


def run(chosen: dict[str, Any], settings: Sequence[str] = ()) -> Path:
    """Run a recipe, reusing what earlier runs of its name have made: the folder of the run.

    Raises: SystemExit with its last words if it neither promoted nor refused a model.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(chosen, allow_unicode=True), encoding="utf-8")
        workdir = ROOT / "build" / chosen["name"]
        command = [Path(sys.executable).with_name("bloomery"), "run", file, "--workdir", workdir, "--json", *settings]
        ended = subprocess.run(command, capture_output=True, text=True)
    summary = json.loads(ended.stdout.strip().split("\n")[-1])
    if ended.returncode not in (0, 5):
        raise SystemExit(f"{summary}\n{ended.stderr[-2000:]}")
    return Path(summary["run"])
