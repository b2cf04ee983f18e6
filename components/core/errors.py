"""What can go wrong, and the exit code each kind ends a command with.

    BloomeryError          1   a process was killed, or the one that it told what it did
    ├── ConfigError        2   the recipe or an argument is wrong
    ├── DataError          3   the data cannot be used as it is
    ├── ModelError         4   a checkpoint cannot be used as it is
    │   └── DivergedError  4   training left the finite numbers
    ├── GateError          5   a candidate was refused: a decision, not a fault
    ├── MissingExtraError  6   an optional dependency is not installed; the message holds the pip line
    └── ServiceError       7   a store, tracker or endpoint did not answer: the only kind worth retrying

A message says what was found, what was expected, where, and what to do, no password that stands in a URL, and for the
path of what is being made the one that it will have. These errors are shown without a traceback.
"""

from __future__ import annotations

import errno
import os
import re

from bloomery.components.core import scratch

_USER = re.compile(r"""(?<=://)[^\s/?#\\"',;]+@""")
_UNFINISHED = re.compile(re.escape(scratch.PREFIX) + r"(?:[^/\s:]+/(?!\.lock))?")
"""Of a path: the folder in which what stands in it is made."""
FULL = (errno.ENOSPC, errno.EDQUOT)
OF_A_DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk refuses whoever asks: it is full, or may not be written, or not read."""
OF_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "unable to open database file": errno.EACCES,
    "attempt to write a readonly database": errno.EACCES,
}
"""The same in the words of SQLite, which libraries hand on as errors of their own."""


def masked(text: str) -> str:
    """`text` without the users and passwords that stand in its URLs, for whatever is told, logged or kept."""
    return _USER.sub("***@", text)


class BloomeryError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 1

    def __str__(self) -> str:
        return _UNFINISHED.sub("", masked(super().__str__()))


class ConfigError(BloomeryError):
    """The recipe or a command-line argument is wrong; holds every problem found, one per line."""

    exit_code = 2


class DataError(BloomeryError):
    """The data cannot be used as it is."""

    exit_code = 3


class ModelError(BloomeryError):
    """A checkpoint cannot be used as it is."""

    exit_code = 4


class DivergedError(ModelError):
    """The loss or a gradient became non-finite; raised before the weights are touched by it."""


class GateError(BloomeryError):
    """The gate refused a candidate."""

    exit_code = 5


class MissingExtraError(BloomeryError):
    """An optional dependency is not installed."""

    exit_code = 6


class ServiceError(BloomeryError):
    """A store, tracking server or model endpoint did not answer."""

    exit_code = 7


def from_os_error(error: OSError, doing: str) -> BloomeryError:
    """The BloomeryError for an operating-system error met while `doing` something; a full disk is named as such."""
    where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
    if isinstance(error, BrokenPipeError):
        return BloomeryError(f"who started this process and read what it says has ended while {doing}: run it again")
    if error.errno in FULL:
        return ServiceError(
            f"no space left on the disk while {doing}{where}: free some space, or have what names the place "
            "(--workdir, -o, BLOOMERY_STORE, BLOOMERY_CACHE, HF_HOME or TMPDIR) name another; finished steps are kept "
            "and will be reused"
        )
    if error.errno == errno.EROFS:
        return ServiceError(f"the disk is mounted read-only, found while {doing}{where}: name another place")
    if isinstance(error, FileNotFoundError):
        return DataError(f"no such file while {doing}{where}: check the path in the recipe")
    if isinstance(error, PermissionError):
        return DataError(f"permission denied while {doing}{where}: check the owner and mode of the path")
    return ServiceError(f"the operating system refused {doing}{where}: {error.strerror or error}")


def from_sqlite(reason: str, file: str, doing: str) -> BloomeryError | None:
    """As `from_os_error`, by the message of a library whose database is the SQLite `file`; None for what is no fault of
    the disk."""
    for words, number in OF_SQLITE.items():
        if words in reason:
            return from_os_error(OSError(number, os.strerror(number), file), doing)
    return None
