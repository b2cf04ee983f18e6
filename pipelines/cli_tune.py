"""`bloomery tune`: a search for settings."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bloomery.pipelines.cli_options import (
    WORKDIR,
    InImageOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    UploadOption,
    WorkdirOption,
)


def tune(
    recipe: RecipeArgument,
    over: Annotated[
        list[str], typer.Option(metavar="STAGE.KEY=VALUES", help="A setting: `low..high` or `a,b,c`; repeatable.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="Trials of the study, those of earlier calls among them.")] = 20,
    sampler: Annotated[
        Literal["tpe", "random", "grid", "cmaes", "population"],
        typer.Option(help="How settings are chosen; population: NSGA-II, in generations of eight."),
    ] = "tpe",
    measure: Annotated[
        str, typer.Option(help="stage/metric; none: validation_loss of the last stage that --over names.")
    ] = "",
    maximise: Annotated[bool, typer.Option("--maximise", help="The measure is better where it is higher.")] = False,
    storage: Annotated[
        str, typer.Option(help="URL of the study's database, such as postgresql://…; none: SQLite in the workdir.")
    ] = "",
    compile_: Annotated[
        Path | None,
        typer.Option(
            "--compile", metavar="FILE", help="Write the search as a pipeline for a cluster, and run nothing."
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=100_000, help="With --compile: trials at a time.")] = 4,
    upload: UploadOption = None,
    in_image: InImageOption = False,
    workdir: WorkdirOption = WORKDIR,
    set: SetOption = [],  # noqa: A002, B006
    as_json: JsonOption = False,
) -> None:
    """Search for the settings of a recipe. A trial runs its chain up to the stage that is measured; none is promoted.

    What trials have in common is computed once, trials worse than the median are ended early, and the same command goes
    on with a study that was interrupted. Afterwards run the recipe with the settings that are printed.

    With --compile the trials run side by side on a cluster, by `bloomery submit FILE`; one that fails is told as
    failed, and the others go on. Files of this machine are put where pods read them by --upload.

    Examples:

        bloomery tune my.yaml --over sft.learning_rate=1e-5..1e-3 --over sft.adapter.rank=8,16,32

        bloomery tune my.yaml --over dpo.beta=0.01..1 --measure dpo/accuracy_after --maximise --trials 12

        bloomery tune my.yaml --over cpt.replay_share=0,0.05,0.2 --sampler grid --measure cpt/general_perplexity_after

        bloomery tune my.yaml --over sft.adapter.rank=8,16,32 --sampler grid --compile search.yaml --upload s3://b/shop
    """
    if compile_:
        from bloomery.pipelines import launch

        pipeline = _pipeline(
            recipe,
            set,
            over,
            upload=None if in_image else upload,
            in_image=in_image,
            trials=trials,
            sampler=sampler,
            measure=measure,
            maximise=maximise,
            parallel=parallel,
        )
        launch.compile_pipeline(pipeline, compile_)
        typer.echo(str(compile_))
        return
    from bloomery.infra import surroundings

    surroundings.enter()
    from bloomery.pipelines import workdirs

    def tell(trial: dict[str, Any]) -> None:
        told = ", ".join(f"{key} {shown(value)}" for key, value in trial["settings"].items())
        value = "" if trial["value"] is None else f"{trial['value']:.5g}"
        line = f"trial {trial['number']:<3} {trial['state']:<9} {value:<10} {told}  {trial['seconds']:.0f} s"
        typer.echo(f"{line}  {trial['error'].split(chr(10))[0]}".rstrip(), err=True)

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    with workdirs.held(workdir):
        from bloomery.pipelines import tune as search
        from bloomery.pipelines.progress import Lines

        with contextlib.closing(Lines()) as lines:
            study = search.search(
                recipe,
                set,
                [search.parse_over(text) for text in over],
                workdir,
                trials=trials,
                sampler=sampler,
                measure=measure,
                maximise=maximise,
                storage=storage,
                show=lines,
                told=tell,
            )
    if study.best:
        settings = " ".join(f"--set {search.setting(key, value)}" for key, value in study.best["settings"].items())
        typer.echo(f"best: trial {study.best['number']}, {study.best['value']:.5g}: {settings}", err=True)
    typer.echo(f"page: {study.page}", err=True)
    if as_json:
        typer.echo(json.dumps({"best": study.best, "trials": study.trials, "page": str(study.page)}))
    raise typer.Exit(0 if study.best else 4)


def _pipeline(
    recipe: str, settings: list[str], over: list[str], *, upload: str | None, in_image: bool, **search: Any
) -> Any:
    """The pipeline of a search, with files of this machine under `upload`, or a warning of those that no pod reads."""
    from bloomery.pipelines import local_files, tune_pipeline
    from bloomery.pipelines.recipe import Recipe

    warned: set[str] = set()

    def for_pods(loaded: Recipe) -> Recipe:
        if upload:
            return local_files.for_pods(loaded, upload)
        told = "" if in_image else local_files.warning(loaded)
        if told not in warned | {""}:
            typer.echo(told, err=True)
        warned.add(told)
        return loaded

    return tune_pipeline.build(recipe, settings, over, prepare=bool(upload), for_pods=for_pods, **search)
