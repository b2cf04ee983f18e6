"""The kinds of Kubeflow Trainer by their own schema: the models that it publishes for Python."""

from __future__ import annotations

from typing import Any

from kubeflow_trainer_api import models

KINDS: dict[str, Any] = {
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest; a wrong type raises pydantic's ValidationError.

    The models leave out what they do not know, so whatever does not come back is a field that there is not.
    """
    kept = KINDS[manifest["kind"]].from_dict(manifest).to_dict()
    return list(_lost(manifest, kept, ""))


def _lost(given: Any, kept: Any, place: str) -> Any:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{place}.{key}: no such field"
            else:
                yield from _lost(value, kept[key], f"{place}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, pair in enumerate(zip(given, kept, strict=True)):
            yield from _lost(*pair, f"{place}[{number}]")
    elif given != kept:
        yield f"{place}: found {given!r}, understood as {kept!r}"
