"""Where a step keeps what it needs to go on after it was killed: beside its place in the store, under the same key.

The key is a digest of code, config and inputs, so only the very same work finds it; what is kept goes when the result
is there. With a store on a disk it lies there. With one on an object store it lies in a folder of this machine, from
which `keep` copies it while the step goes on, and into which it comes back when the same work is begun on another.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from bloomery.components.core import s3, trees
from bloomery.components.core.errors import BloomeryError

logger = logging.getLogger(__name__)

CONTENT = "content"


@dataclass(frozen=True)
class Place:
    """Where the running step keeps what it needs to go on."""

    folder: Path
    uri: str | None = None
    """Where copies of it lie on an object store; None: the folder is in the store itself."""


_place: ContextVar[Place | None] = ContextVar("unfinished", default=None)
_copying: ContextVar[Future[None] | None] = ContextVar("copying", default=None)


def place() -> Path | None:
    """The folder of this process's step, which need not exist; None where its result is not kept in a store either."""
    here = _place.get()
    return None if here is None else here.folder


def current() -> Place | None:
    """The place itself, for a process that runs the same step."""
    return _place.get()


def keep(folders: Sequence[Path]) -> None:
    """Let these folders of `place()`, which are whole and change no more, and none but them, be what the same work goes
    on from. They are copied to an object store in a thread, after those of an earlier call, for which this one waits:
    then those may go, and these have to stay until `settle`. Where the store does not take them, this is told, and the
    work goes on: it has the older ones."""
    here = _place.get()
    if here is None or here.uri is None:
        return
    settle()
    pool = ThreadPoolExecutor(1, thread_name_prefix="unfinished")
    _copying.set(pool.submit(_copy, here.uri, folders))
    pool.shutdown(wait=False)


def is_copying() -> bool:
    """Whether an object store has not yet all that `keep` was given."""
    copying = _copying.get()
    return copying is not None and not copying.done()


def settle() -> None:
    """Wait until all that `keep` was given is copied."""
    if copying := _copying.get():
        copying.result()


def _copy(uri: str, folders: Sequence[Path]) -> None:
    try:
        there = set(trees.names(uri))
        for folder in folders:
            if folder.name not in there:
                trees.put(f"{uri}/{folder.name}", {CONTENT: folder})
        for name in there - {folder.name for folder in folders}:
            s3.delete(f"{uri}/{name}")
    except BloomeryError as error:
        logger.warning("%s is kept on this machine alone: %s", folders[-1].name, error)


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Give the step that runs inside a folder, and empty it when it has ended well."""
    with lying_in(Place(folder)):
        yield
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def kept_at(uri: str) -> Iterator[None]:
    """Give the step that runs inside a folder with what an object store keeps for it at `uri`, the newest of it. It
    stays there until somebody deletes it who has put the result in its place.

    Raises: ConfigError what the store refuses, ServiceError if it does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="bloomery-") as name:
        folder = Path(name)
        for found in reversed(trees.names(uri)):
            if trees.get(f"{uri}/{found}", {CONTENT: folder / found}) is not None:
                logger.info("%s of an earlier attempt was fetched", found)
                break
        with lying_in(Place(folder, uri)):
            yield


@contextlib.contextmanager
def lying_in(where: Place | None) -> Iterator[None]:
    """Give the step that runs inside a place that somebody else looks after; it ends when all is copied."""
    with contextlib.ExitStack() as stack:
        stack.callback(_place.reset, _place.set(where))
        stack.callback(_copying.reset, _copying.set(None))
        stack.callback(settle)
        yield
