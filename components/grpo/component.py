"""The kfp component of `grpo`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def grpo(
    stage: str,
    config: dict,
    base_model: Input[Model],
    tasks: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
    prompts: Optional[Input[Dataset]] = None,  # noqa: UP045
    reward_model: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Learn from what the model's own answers are worth."""
    from bloomery.components.core.step import run_step
    from bloomery.components.grpo.step import run

    inputs = {"base_model": base_model, "tasks": tasks, "prompts": prompts, "reward_model": reward_model}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
