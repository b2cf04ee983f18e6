"""dedup as a pipeline component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def dedup(
    stage: str,
    config: dict,
    documents: Input[Dataset],
    tasks: Input[Dataset],
    known: Input[Dataset],
    encoder: Input[Model],
    kept: Output[Dataset],
    duplicates: Output[Dataset],
    index: Output[Dataset],
    metrics: Output[Metrics],
):
    """Documents without copies of each other and without evaluation questions."""
    from bloomery.components.core.step import run_step
    from bloomery.components.dedup.step import run

    inputs = {"documents": documents, "tasks": tasks, "known": known, "encoder": encoder}
    outputs = {"kept": kept, "duplicates": duplicates, "index": index}
    run_step(run, stage, config, inputs, outputs, metrics)
