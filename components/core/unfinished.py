"""Where a step keeps what it needs to go on after it was killed: beside its place in the store, under the same key.

The key is a digest of code, config and inputs, so only the very same work finds it; what is kept goes when the result
is there. With a store on a disk it lies there. With one on an object store it lies in a folder of this machine, from
which `keep` copies it while the step goes on, and into which it comes back when the same work is begun on another.
Folders are of kinds, by what stands before the last hyphen of their names, and the newest of each kind is gone on from.
Where several machines train together, each has written a part of a checkpoint: `keep_part` copies those of the others,
before the first keeps its own, and each begins again with all of them.
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

from bloomery.components.core import nodes, s3, trees
from bloomery.components.core.errors import BloomeryError, ServiceError

logger = logging.getLogger(__name__)

CONTENT = "content"
CHECKPOINT = "checkpoint"
"""The kind of folders of which each machine writes a part; of others the first writes all."""
OTHER = ".node-"
"""Between the name of a folder and the number of the machine, in the name of a part."""


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
    """Let these folders of `place()`, of one kind, which are whole and change no more, and none but them of their kind,
    be what the same work goes on from. They are copied to an object store in a thread, after those of an earlier call,
    for which this one waits: then those may go, and these have to stay until `settle`. Where the store does not take
    them, this is told, and the work goes on: it has the older ones."""
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
        there = {name for name in trees.names(uri) if _kind(name) == _kind(folders[0].name)}
        parts = {part for folder in folders for part in _parts(folder.name)}
        if lacking := parts - there:
            raise ServiceError(f"{', '.join(sorted(lacking))} was not kept")
        for folder in folders:
            if folder.name not in there:
                trees.put(f"{uri}/{folder.name}", {CONTENT: folder})
        for name in there - parts - {folder.name for folder in folders}:
            s3.delete(f"{uri}/{name}")
    except BloomeryError as error:
        logger.warning("%s is kept on this machine alone: %s", folders[-1].name, error)


def keep_part(folder: Path) -> None:
    """On another machine than the first of those that train together: let what its processes have written into
    `folder` be found by all of them, and delete it here. What the store does not take is told."""
    here = _place.get()
    rank = nodes.here().rank
    if here is None or here.uri is None or not rank:
        return
    try:
        trees.put(f"{here.uri}/{folder.name}{OTHER}{rank}", {CONTENT: folder})
    except BloomeryError as error:
        logger.warning("%s is not kept of machine %d: %s", folder.name, rank, error)
    shutil.rmtree(folder, ignore_errors=True)


def _parts(name: str) -> list[str]:
    """Names of what the other machines keep of a folder."""
    count = nodes.here().count if _kind(name) == CHECKPOINT else 1
    return [f"{name}{OTHER}{rank}" for rank in range(1, count)]


def _kind(name: str) -> str:
    """Of a folder, or of a part of one."""
    return name.partition(OTHER)[0].rpartition("-")[0]


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Give the step that runs inside a folder, and empty it when it has ended well."""
    with lying_in(Place(folder)):
        yield
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def kept_at(uri: str) -> Iterator[None]:
    """Give the step that runs inside a folder with what an object store keeps for it at `uri`, the newest of each kind.
    It stays there until somebody deletes it who has put the result in its place.

    Raises: ConfigError what the store refuses, ServiceError if it does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="bloomery-") as name:
        folder = Path(name)
        fetched: set[str] = set()
        for found in reversed([name for name in trees.names(uri) if OTHER not in name]):
            if _kind(found) not in fetched and _fetched(uri, found, folder):
                logger.info("%s of an earlier attempt was fetched", found)
                fetched.add(_kind(found))
        with lying_in(Place(folder, uri)):
            yield


def _fetched(uri: str, name: str, folder: Path) -> bool:
    """Whether what an object store keeps as `name` is whole; it then stands in `folder`, with the other machines'."""
    names = [name, *_parts(name)]
    if any(trees.get(f"{uri}/{one}", {CONTENT: folder / one}) is None for one in names):
        for one in names:
            shutil.rmtree(folder / one, ignore_errors=True)
        return False
    for part in names[1:]:
        shutil.copytree(folder / part, folder / name, dirs_exist_ok=True, copy_function=shutil.move)
        shutil.rmtree(folder / part)
    return True


@contextlib.contextmanager
def lying_in(where: Place | None) -> Iterator[None]:
    """Give the step that runs inside a place that somebody else looks after; it ends when all is copied."""
    with contextlib.ExitStack() as stack:
        stack.callback(_place.reset, _place.set(where))
        stack.callback(_copying.reset, _copying.set(None))
        stack.callback(settle)
        yield
