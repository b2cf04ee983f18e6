"""Where a step keeps what it needs to go on after it was killed: beside its place in the store, under the same key.

The key is a digest of code, config and inputs, so only the very same work finds it; what is kept goes when the result
is there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_place: ContextVar[Path | None] = ContextVar("unfinished", default=None)


def place() -> Path | None:
    """The folder of this process's step, which need not exist; None where its result is not kept in a store either."""
    return _place.get()


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Give the step that runs inside a folder, and empty it when it has ended well."""
    with lying_in(folder):
        yield
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lying_in(folder: Path | None) -> Iterator[None]:
    """Give the step that runs inside a folder that somebody else looks after."""
    token = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(token)
