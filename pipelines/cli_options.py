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
EndpointOption = Annotated[
    str | None,
    typer.Option(
        envvar=["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"],
        help="Address of the Kubeflow Pipelines API; none: kfp's own search.",
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(envvar="KFP_NAMESPACE", help="Your profile, where Kubeflow has several users; none: this pod's."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        envvar="KFP_TOKEN",
        show_envvar=True,
        help="Bearer token of the API, better given by the variable; none: that of this pod's service account, if any.",
    ),
]
UploadOption = Annotated[
    str | None,
    typer.Option(
        envvar="BLOOMERY_BUCKET",
        metavar="s3://BUCKET/PREFIX",
        help="Where the files of this machine that the recipe names are put, under their content, for pods to read.",
    ),
]
InImageOption = Annotated[bool, typer.Option("--in-image", help="Paths are meant in the image of the tasks.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its name (--key).")]
WORKDIR = Path("bloomery-runs")
