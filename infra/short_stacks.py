"""kfp without the sources of the stack."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from types import SimpleNamespace


@contextlib.contextmanager
def short_stacks() -> Iterator[None]:
    """Build pipelines in here: for each setting of a task kfp 2.17 asks `inspect.stack()` for the name of its caller,
    which looks through all modules for the source of every frame: beside MLflow 3 CPU seconds for twenty tasks."""
    from kfp.dsl import pipeline_task

    pipeline_task.inspect = SimpleNamespace(stack=_stack)
    try:
        yield
    finally:
        pipeline_task.inspect = inspect


def _stack() -> list[tuple[None, str, int, str]]:
    """What `inspect.stack()` would tell its caller, of the first two frames and without modules and sources."""
    own = sys._getframe(1)
    frames = own, own.f_back or own
    return [(None, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in frames]
