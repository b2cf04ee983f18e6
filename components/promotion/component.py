"""The kfp component of `promotion`."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def promotion(
    stage: str,
    config: dict,
    model: Input[Model],
    tasks: Input[Dataset],
    candidate_results: Input[Dataset],
    base_results: Input[Dataset],
    champion_results: Input[Dataset],
    champion: Input[Model],
    champion_version: Input[Artifact],
    verdict: Output[Artifact],
    metrics: Output[Metrics],
    parent: Optional[Input[Model]] = None,  # noqa: UP045
    variants: Optional[Input[Artifact]] = None,  # noqa: UP045
    curated: Optional[Input[Dataset]] = None,  # noqa: UP045
    unique: Optional[Input[Dataset]] = None,  # noqa: UP045
    duplicates: Optional[Input[Dataset]] = None,  # noqa: UP045
    chats: Optional[Input[Dataset]] = None,  # noqa: UP045
    preferences: Optional[Input[Dataset]] = None,  # noqa: UP045
):
    """Judge the candidate, and promote it if it passes."""
    from bloomery.components.core.step import run_step
    from bloomery.components.promotion.step import run

    inputs = {
        "model": model,
        "parent": parent,
        "tasks": tasks,
        "curated": curated,
        "unique": unique,
        "duplicates": duplicates,
        "chats": chats,
        "preferences": preferences,
        "variants": variants,
        "candidate_results": candidate_results,
        "base_results": base_results,
        "champion_results": champion_results,
        "champion": champion,
        "champion_version": champion_version,
    }
    outputs = {"verdict": verdict}
    run_step(run, stage, config, inputs, outputs, metrics)
