"""The kfp component of `cpt`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def cpt(
    stage: str,
    config: dict,
    documents: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    chats: Optional[Input[Dataset]] = None,  # noqa: UP045
):
    """Continue the pre-training of a model on documents."""
    from bloomery.components.core.step import run_step
    from bloomery.components.cpt.step import run

    inputs = {"documents": documents, "base_model": base_model, "chats": chats}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
