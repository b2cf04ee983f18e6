"""The kfp component of `quantisation`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def quantisation(
    stage: str,
    config: dict,
    base_model: Input[Model],
    tasks: Input[Dataset],
    model: Output[Model],
    measurement: Output[Artifact],
    metrics: Output[Metrics],
    chats: Optional[Input[Dataset]] = None,  # noqa: UP045
):
    """Export one quantised variant of a model and measure it as it will be served."""
    from bloomery.components.core.step import run_step
    from bloomery.components.quantisation.step import run

    inputs = {"base_model": base_model, "tasks": tasks, "chats": chats}
    outputs = {"model": model, "measurement": measurement}
    run_step(run, stage, config, inputs, outputs, metrics)
