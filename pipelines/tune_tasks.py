"""The kfp components of a search on a cluster: what a trial measured, and all trials together."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def told(trial: dict, measure: str, metrics: Input[Metrics]) -> dict:
    """The row of a trial: its number, its settings and what the measured stage told."""
    from bloomery.pipelines.tune_pipeline import row_of

    return row_of(trial, measure, metrics.path)


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def collected(name: str, measure: str, maximise: bool, rows: list, best: Output[Artifact], page: Output[HTML]):
    """The best trial, as JSON, and the page about the search."""
    from bloomery.pipelines.tune_pipeline import write_best

    write_best(name, measure, maximise, rows, best.path, page.path)
