"""Who holds a workdir: one run, or one search, at a time."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator
from pathlib import Path

from bloomery.components.core import errors
from bloomery.components.core.errors import ServiceError

LOCK = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Hold the workdir: two runs at once would race for the registry and the cores.

    Raises: ServiceError if another holds it; what an error of the file system is.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a")
    except OSError as error:
        raise errors.from_os_error(error, f"opening the workdir {workdir.absolute()}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"{workdir.absolute()}: another run holds this workdir; wait for it or choose another --workdir"
            ) from None
        os.utime(lock.fileno())
        yield


def held_since(workdir: Path) -> float:
    """When who holds the workdir took it, in seconds since 1970; infinity where nobody holds it."""
    try:
        with (workdir / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (workdir / LOCK).stat().st_mtime
    except OSError:
        pass  # nobody has ever held it
    return math.inf
