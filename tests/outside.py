"""Data and inputs that are no part of the project: tests read them where a variable names their folder."""

import os
from pathlib import Path

import pytest


def folder(variable: str, *parts: str) -> Path:
    """A folder below the one that `variable` names; the test is skipped, with the reason, where there is none."""
    found = Path(os.environ.get(variable) or "/nowhere", *parts)
    if not found.is_dir():
        pytest.skip(f"{variable} names no folder with {'/'.join(parts) or 'anything'}")
    return found
