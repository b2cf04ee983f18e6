"""Folders in the cache that are there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".unfinished-"


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is moved there when it is whole; it goes with the context. Those that killed
    processes have left there, which nobody holds, go first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _lock(out.parent, fcntl.LOCK_EX):  # none is taken for left before its process holds it
            for left in out.parent.glob(f"{PREFIX}*"):
                with contextlib.suppress(BlockingIOError), _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out.parent))
            held.callback(shutil.rmtree, scratch, ignore_errors=True)
            held.enter_context(_lock(scratch, fcntl.LOCK_EX))
        yield scratch


@contextlib.contextmanager
def _lock(folder: Path, how: int) -> Iterator[None]:
    """Hold a folder until the context or this process ends. Raises: BlockingIOError where `how` says not to wait."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, how)
        yield
    finally:
        os.close(opened)
