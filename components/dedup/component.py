"""dedup as a pipeline component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def dedup(
    stage: str,
    config: dict,
    documents: Input[Dataset],
    tasks: Input[Dataset],
    kept: Output[Dataset],
    duplicates: Output[Dataset],
    metrics: Output[Metrics],
):
    """Documents without copies of each other and without evaluation questions."""
    from bloomery.components.core.step import run_step
    from bloomery.components.dedup.step import run

    inputs = {"documents": documents, "tasks": tasks}
    run_step(run, stage, config, inputs, {"kept": kept, "duplicates": duplicates}, metrics)
