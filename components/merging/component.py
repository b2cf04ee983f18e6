"""The kfp component of `merging`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def merging(
    stage: str,
    config: dict,
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    outside: Optional[Input[Model]] = None,  # noqa: UP045
    first: Optional[Input[Model]] = None,  # noqa: UP045
    second: Optional[Input[Model]] = None,  # noqa: UP045
    third: Optional[Input[Model]] = None,  # noqa: UP045
    fourth: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Merge, stack or extend models without training."""
    from bloomery.components.core.step import run_step
    from bloomery.components.merging.step import run

    named = {"first": first, "second": second, "third": third, "fourth": fourth}
    inputs = {"base_model": base_model, "outside": outside, **named}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
