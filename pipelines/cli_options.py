"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(help="Recipe file, or the name of one that comes with the package.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="STEP.KEY=VALUE", help="Override a key of the recipe; repeatable.")
]
WorkdirOption = Annotated[
    Path, typer.Option(help="Folder of runs, finished results, promoted models and the MLflow database.")
]
StateOption = Annotated[
    str,
    typer.Option("--workdir", help="Folder of runs and decisions; on a cluster the URI of a store, as s3://bucket/prefix."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
WORKDIR = Path("bloomery-runs")
