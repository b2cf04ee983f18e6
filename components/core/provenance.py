"""What the running code is: its commit and its container image, as far as they are known."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PIPELINE_RUN = "BLOOMERY_PIPELINE_RUN"
"""Environment: id of the run in Kubeflow Pipelines that this pod belongs to; a pod alone has it."""
TASK_IMAGE = "BLOOMERY_TASK_IMAGE"
"""Environment: the image that a task was compiled with; it runs in it where it runs in a pod."""


def commit() -> str:
    """The commit of the checkout that this file stands in, with `-dirty` where files differ; `BLOOMERY_COMMIT`, which
    an image sets, for an installed package; else ''."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return os.environ.get("BLOOMERY_COMMIT", "")
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def image() -> str:
    """The container image that runs this process, with its digest where whoever deployed it put one into
    `BLOOMERY_IMAGE`; in a pod of a pipeline that which the task was compiled with; else ''."""
    own = os.environ.get(TASK_IMAGE, "") if os.environ.get(PIPELINE_RUN) else ""
    return os.environ.get("BLOOMERY_IMAGE") or own
