"""chat_curation as a pipeline component."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def chat_curation(
    stage: str,
    config: dict,
    sources: Input[Dataset],
    tasks: Input[Dataset],
    chats: Output[Dataset],
    preferences: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    seeds: Optional[Input[Dataset]] = None,  # noqa: UP045
):
    """Chats and preference pairs of the field's files, fit to be learnt from."""
    from bloomery.components.chat_curation.step import run
    from bloomery.components.core.step import run_step

    inputs = {"sources": sources, "tasks": tasks, "seeds": seeds}
    outputs = {"chats": chats, "preferences": preferences, "rejects": rejects}
    run_step(run, stage, config, inputs, outputs, metrics)
