"""The kfp component of `sft`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def sft(
    stage: str,
    config: dict,
    chats: Input[Dataset],
    tasks: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
):
    """Fine-tune a model on chats."""
    from bloomery.components.core.step import run_step
    from bloomery.components.sft.step import run

    inputs = {"chats": chats, "tasks": tasks, "base_model": base_model}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
