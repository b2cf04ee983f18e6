"""Who holds a workdir: one run, or one search, at a time."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from bloomery.components.core import errors, scratch
from bloomery.components.core.errors import ServiceError

LOCK = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Hold the workdir: two runs at once would race for the registry and the cores. One that was made for it, and in
    which nothing was begun, goes again.

    Raises: ServiceError if another holds it, or no temporary file can be written; what an error of the file system is.
    """
    was_there = workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a")
    except OSError as error:
        raise errors.from_os_error(error, f"opening the workdir {workdir.absolute()}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_it = os.path.samestat(os.fstat(lock.fileno()), (workdir / LOCK).stat())
        except (BlockingIOError, FileNotFoundError):
            is_it = False
        if not is_it:
            raise ServiceError(
                f"{workdir.absolute()}: another run holds this workdir; wait for it or choose another --workdir"
            )
        os.utime(lock.fileno())
        try:
            with _temporary_files():
                yield
        finally:
            with contextlib.suppress(OSError):
                if not was_there and [entry.name for entry in workdir.iterdir()] == [LOCK]:
                    (workdir / LOCK).unlink()
                    workdir.rmdir()


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Let temporary files of this process, and of those that it starts, lie in a folder that goes with the context, or
    if it is killed with the next one: kfp leaves a file of each task, and a task that is killed what it has."""
    before, environment = tempfile.tempdir, os.environ.get("TMPDIR")
    with contextlib.ExitStack() as stack:
        try:
            place = Path(tempfile.gettempdir()) / f"bloomery-{uuid.uuid4().hex[:8]}"
            tempfile.tempdir = os.environ["TMPDIR"] = str(stack.enter_context(scratch.beside(place)))
        except OSError as error:
            raise ServiceError(
                f"no folder for temporary files could be made, {error}: let TMPDIR name a folder with room"
            ) from error
        try:
            yield
        finally:
            tempfile.tempdir = before
            del os.environ["TMPDIR"]
            os.environ.update({} if environment is None else {"TMPDIR": environment})


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
