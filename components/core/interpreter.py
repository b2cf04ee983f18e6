"""The Python that a step starts a process of its own with."""

from __future__ import annotations

import os
import sys

PYTHON = "BLOOMERY_PYTHON"
"""Environment: a program that `-m module` starts as Python would, with what tasks need imported before; the launcher
gives it to the tasks of this machine, and takes one that it was given."""


def fresh() -> str:
    """That program, else this process's Python. Only for `-m`, and for a process that need not end with its parent."""
    return os.environ.get(PYTHON) or sys.executable
