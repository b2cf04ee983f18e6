"""The kfp component of `rejection_sampling`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def rejection_sampling(
    stage: str,
    config: dict,
    base_model: Input[Model],
    tasks: Input[Dataset],
    sampled_chats: Output[Dataset],
    preferences: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    chats: Optional[Input[Dataset]] = None,  # noqa: UP045
    prompts: Optional[Input[Dataset]] = None,  # noqa: UP045
    reward_model: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Sample answers, verify them, keep the right ones."""
    from bloomery.components.core.step import run_step
    from bloomery.components.rejection_sampling.step import run

    inputs = {"base_model": base_model, "chats": chats, "prompts": prompts, "tasks": tasks}
    inputs |= {"reward_model": reward_model}
    outputs = {"sampled_chats": sampled_chats, "preferences": preferences, "rejects": rejects}
    run_step(run, stage, config, inputs, outputs, metrics)
