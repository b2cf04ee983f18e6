"""The kfp component of `nas`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def nas(
    stage: str,
    config: dict,
    base_model: Input[Model],
    chats: Input[Dataset],
    tasks: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
):
    """Search for the best sub-network under a limit."""
    from bloomery.components.core.step import run_step
    from bloomery.components.nas.step import run

    inputs = {"base_model": base_model, "chats": chats, "tasks": tasks}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
