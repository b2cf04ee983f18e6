"""The kfp component of `ptq`."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def ptq(
    stage: str,
    config: dict,
    models: Input[list[Model]],
    measurements: Input[list[Artifact]],
    model: Output[Model],
    variants: Output[Artifact],
    metrics: Output[Metrics],
):
    """Compare the quantised variants and pass the smallest good one on."""
    from bloomery.components.core.step import run_step
    from bloomery.components.ptq.step import run

    inputs = {"models": models, "measurements": measurements}
    outputs = {"model": model, "variants": variants}
    run_step(run, stage, config, inputs, outputs, metrics)
