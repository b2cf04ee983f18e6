"""The kfp component of `adoption`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def adoption(
    stage: str,
    config: dict,
    model: Output[Model],
    metrics: Output[Metrics],
    outside: Optional[Input[Model]] = None,  # noqa: UP045
    named: Optional[Input[Model]] = None,  # noqa: UP045
):
    """Make another model the newest."""
    from bloomery.components.adoption.step import run
    from bloomery.components.core.step import run_step

    inputs = {"outside": outside, "named": named}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
