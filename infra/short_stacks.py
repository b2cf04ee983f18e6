"""kfp without the sources of the stack."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace


@contextlib.contextmanager
def short_stacks() -> Iterator[None]:
    """Build pipelines in here: for each setting of a task kfp 2.17 asks `inspect.stack()` for the name of its caller,
    which also looks through all modules for the source of every frame: beside MLflow 3 CPU seconds for twenty tasks."""
    from kfp.dsl import pipeline_task

    pipeline_task.inspect = SimpleNamespace(stack=lambda: inspect.stack(context=0)[1:])  # without this lambda
    try:
        yield
    finally:
        pipeline_task.inspect = inspect
