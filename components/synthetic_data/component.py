"""synthetic_data as a pipeline component."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def synthetic_data(
    stage: str,
    config: dict,
    tasks: Input[Dataset],
    chats: Output[Dataset],
    prompts: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    seeds: Optional[Input[Dataset]] = None,  # noqa: UP045
    documents: Optional[Input[Dataset]] = None,  # noqa: UP045
):
    """Chats to imitate and prompts to sample from, verified and deduplicated."""
    from bloomery.components.core.step import run_step
    from bloomery.components.synthetic_data.step import run

    inputs = {"documents": documents, "tasks": tasks, "seeds": seeds}
    run_step(run, stage, config, inputs, {"chats": chats, "prompts": prompts, "rejects": rejects}, metrics)
