"""The kfp component of `reward_model`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def reward_model(
    stage: str,
    config: dict,
    preferences: Input[Dataset],
    base_model: Input[Model],
    reward_model: Output[Model],
    metrics: Output[Metrics],
):
    """Learn to score answers from preference pairs."""
    from bloomery.components.core.step import run_step
    from bloomery.components.reward_model.step import run

    inputs = {"preferences": preferences, "base_model": base_model}
    outputs = {"reward_model": reward_model}
    run_step(run, stage, config, inputs, outputs, metrics)
