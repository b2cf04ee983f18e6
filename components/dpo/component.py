"""The kfp component of `dpo`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def dpo(
    stage: str,
    config: dict,
    preferences: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
):
    """Optimise a model on preference pairs."""
    from bloomery.components.core.step import run_step
    from bloomery.components.dpo.step import run

    inputs = {"preferences": preferences, "base_model": base_model}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
