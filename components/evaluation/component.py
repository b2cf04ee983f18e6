"""The kfp component of `evaluation`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluation(
    stage: str,
    config: dict,
    model: Input[Model],
    tasks: Input[Dataset],
    results: Output[Dataset],
    metrics: Output[Metrics],
):
    """Answer every evaluation set with one model."""
    from bloomery.components.core.step import run_step
    from bloomery.components.evaluation.step import run

    inputs = {"model": model, "tasks": tasks}
    outputs = {"results": results}
    run_step(run, stage, config, inputs, outputs, metrics)
