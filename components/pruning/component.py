"""The kfp component of `pruning`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def pruning(
    stage: str,
    config: dict,
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    chats: Optional[Input[Dataset]] = None,  # noqa: UP045
    outside: Optional[Input[Model]] = None,  # noqa: UP045
    first: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Take layers, heads and channels out of a model, or set weights to zero."""
    from bloomery.components.core.step import run_step
    from bloomery.components.pruning.step import run

    inputs = {"base_model": base_model, "chats": chats, "outside": outside, "first": first}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
