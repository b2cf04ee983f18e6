"""Folders that are there whole or not at all, each made by one process at a time, and what killed ones have left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

PREFIX = ".unfinished-"
LOCK = ".lock"


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """An empty folder of the name of `out`, on its disk, for what is moved there when it is whole; what of it is not
    moved goes with the context.

    While another process is in the context of the same `out`, this one waits, and may then find `out` whole. What
    processes that were killed have left beside it, for whatever folder, goes first. A file system that knows no locks
    (Lustre, if it is mounted so) lets all of them make it at once, each in a folder of its own, and keeps what is left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    own = out.with_name(f"{PREFIX}{out.name}")
    for left in out.parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (left / LOCK).open("r+") as lock:  # another may delete it, or hold it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(left)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(own))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
                raise
            own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out.parent))
        stack.callback(_clear, own)
        _empty(own)  # of one that was killed while this one waited for it
        made = own / out.name
        made.mkdir()
        yield made


def _locked(folder: Path) -> IO[str]:
    """The file that holds `folder` until it is closed, or this process ends."""
    while True:
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # who held it has just deleted it: once more
            lock = (folder / LOCK).open("a")
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    place = folder.with_name(folder.name.removeprefix(PREFIX))
                    logger.warning("another process makes %s: waiting until it has ended", place)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
                    return lock
            except BaseException:
                lock.close()
                raise
            lock.close()


def _clear(folder: Path) -> None:
    """Delete `folder`, its lock last: whoever takes that next finds nothing that is still being deleted."""
    _empty(folder)
    with contextlib.suppress(OSError):  # another waits for it already
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _empty(folder: Path) -> None:
    for entry in folder.glob("*"):
        shutil.rmtree(entry, ignore_errors=True)  # but its lock, which is a file
