"""The kfp component of `ptq`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def ptq(
    stage: str,
    config: dict,
    base_model: Input[Model],
    tasks: Input[Dataset],
    model: Output[Model],
    variants: Output[Artifact],
    metrics: Output[Metrics],
):
    """Quantise a model by every scheme and pass the smallest good variant on."""
    from bloomery.components.core.step import run_step
    from bloomery.components.ptq.step import run

    inputs = {"base_model": base_model, "tasks": tasks}
    outputs = {"model": model, "variants": variants}
    run_step(run, stage, config, inputs, outputs, metrics)
