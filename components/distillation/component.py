"""The kfp component of `distillation`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def distillation(
    stage: str,
    config: dict,
    chats: Input[Dataset],
    tasks: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    outside: Optional[Input[Model]] = None,  # noqa: UP045
    teacher: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Let a model learn from a larger one."""
    from bloomery.components.core.step import run_step
    from bloomery.components.distillation.step import run

    inputs = {"chats": chats, "tasks": tasks, "base_model": base_model, "outside": outside, "teacher": teacher}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
