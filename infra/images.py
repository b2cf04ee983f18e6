"""The two images a task can run in: read from the environment at compile time, then fixed in the pipeline."""

from __future__ import annotations

import os

CPU_IMAGE = os.environ.get("BLOOMERY_IMAGE_CPU", "ghcr.io/bloomery/bloomery:0.1.0-cpu")
"""Every step that asks for no accelerator; `docker build .` makes it."""

GPU_IMAGE = os.environ.get("BLOOMERY_IMAGE_GPU", "ghcr.io/bloomery/bloomery:0.1.0-gpu")
"""Every step on an accelerator; the same Dockerfile with a CUDA build of torch (see its `TORCH_INDEX`)."""
