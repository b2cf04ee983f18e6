"""The images that tasks run in: read from the environment at compile time, then fixed in the pipeline.

On a cluster they come from `bloomery-settings` (infra/k8s), into which kustomize's `images:` writes them, by digest
where it names one; a drift check hands them on to the retraining that it submits.
"""

from __future__ import annotations

import os

CPU, GPU, PULL_SECRET = "BLOOMERY_IMAGE_CPU", "BLOOMERY_IMAGE_GPU", "BLOOMERY_PULL_SECRET"
"""Environment: the two images, and the name of the Secret that they are pulled with."""

CPU_IMAGE = os.environ.get(CPU) or "ghcr.io/bloomery/bloomery-cpu:0.1.0"
"""Every step that asks for no accelerator; `make image` makes it."""

GPU_IMAGE = os.environ.get(GPU) or "ghcr.io/bloomery/bloomery-gpu:0.1.0"
"""Every step on an accelerator; the same Dockerfile with a CUDA build of torch, `make image-gpu`."""


def passed_on() -> dict[str, str]:
    """The variables by which another process compiles with the same images."""
    found = {CPU: CPU_IMAGE, GPU: GPU_IMAGE, PULL_SECRET: os.environ.get(PULL_SECRET, "")}
    return {name: value for name, value in found.items() if value}
