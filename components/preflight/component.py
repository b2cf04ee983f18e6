"""The kfp component of `preflight`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def preflight(
    stage: str,
    config: dict,
    sources: Output[Dataset],
    tasks: Output[Dataset],
    seeds: Output[Dataset],
    known: Output[Dataset],
    encoder: Output[Model],
    outside: Output[Model],
    base_model: Output[Model],
    start: Output[Model],
    champion: Output[Model],
    champion_version: Output[Artifact],
    metrics: Output[Metrics],
):
    """Check everything that comes from outside, and fingerprint it."""
    from bloomery.components.core.step import run_step
    from bloomery.components.preflight.step import run

    inputs = {}
    outputs = {
        "sources": sources,
        "tasks": tasks,
        "seeds": seeds,
        "known": known,
        "encoder": encoder,
        "outside": outside,
        "base_model": base_model,
        "start": start,
        "champion": champion,
        "champion_version": champion_version,
    }
    run_step(run, stage, config, inputs, outputs, metrics)
