"""data_curation as a pipeline component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def data_curation(
    stage: str,
    config: dict,
    sources: Input[Dataset],
    documents: Output[Dataset],
    rejects: Output[Dataset],
    coverage: Output[Dataset],
    metrics: Output[Metrics],
):
    """Raw files in, readable documents out."""
    from bloomery.components.core.step import run_step
    from bloomery.components.data_curation.step import run

    outputs = {"documents": documents, "rejects": rejects, "coverage": coverage}
    run_step(run, stage, config, {"sources": sources}, outputs, metrics)
