"""Where checks keep what they know: the workdir of one machine, or a prefix of a store that pods and people share.

On a store a check works on a copy: it fetches the records and the windows that it needs, and puts back what it has
changed, before it starts anything and at its end. Records of triggers go last, so that whoever finds one finds the rows
that it speaks of. Locks hold on one machine alone: on a cluster the recurring run lets one check run at a time, and the
key of a retraining is the name of its run, so that a second start finds the first.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bloomery.components.core import s3
from bloomery.components.core.errors import BloomeryError, ServiceError

RECORDS = ("triggers/*.json", "holds.jsonl")
"""What every check and every hold needs to know."""


class Home:
    """A workdir whose folder `monitoring` lies on this machine, or is a copy of that below `uri`."""

    def __init__(self, workdir: Path, uri: str = "") -> None:
        self.workdir = workdir.absolute()
        self.folder = self.workdir / "monitoring"
        self._uri = uri.rstrip("/")
        self._saved: dict[Path, tuple[int, int]] = {}

    @property
    def is_shared(self) -> bool:
        """Whether it is the copy of a prefix of a store."""
        return bool(self._uri)

    def told(self, path: Path) -> str:
        """`path`, which lies in the workdir, as others find it."""
        return f"{self._uri}/{path.relative_to(self.workdir).as_posix()}" if self._uri else str(path)

    def fetch(self, *patterns: str) -> None:
        """Bring the files of `monitoring` that match; on one machine they are there.

        Raises: ServiceError if the store does not answer, ConfigError for what it refuses.
        """
        if not self._uri:
            return
        with _opened(self._uri) as store:
            found = {name: self.folder / name for pattern in patterns for name in store.names(pattern)}
            for target in found.values():
                target.parent.mkdir(parents=True, exist_ok=True)
            store.get(found)
            self._saved |= {target: _state(target) for target in found.values()}

    def save(self) -> None:
        """Put back what has changed, whole files, records last. Raises: as `fetch`."""
        if not self._uri:
            return
        records = self.folder / "triggers"
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
        changed = [f for f in files if not f.name.startswith(".") and self._saved.get(f) != _state(f)]
        with _opened(self._uri) as store:
            for last in (False, True):
                states = {file: _state(file) for file in changed if (file.parent == records) is last}
                store.put({file.relative_to(self.folder).as_posix(): file for file in states})
                self._saved |= states


class _Objects:
    """The folder `monitoring` below a prefix of an S3 store, whose errors are told as everywhere."""

    def __init__(self, uri: str) -> None:
        self._root = f"{uri}/monitoring"

    def names(self, pattern: str) -> list[str]:
        folder, _, _ = pattern.rpartition("/")
        if glob.has_magic(folder):
            found = s3.names(self._root)
        else:
            found = [f"{folder}/{name}".lstrip("/") for name in s3.listed(f"{self._root}/{folder}")]
        depth = pattern.count("/")
        return [name for name in found if name.count("/") == depth and fnmatch.fnmatchcase(name, pattern)]

    def get(self, files: Mapping[str, Path]) -> None:
        s3.get_all({f"{self._root}/{name}": (file, None) for name, file in files.items()})

    def put(self, files: Mapping[str, Path]) -> None:
        s3.put({f"{self._root}/{name}": file for name, file in files.items()})


class _Files:
    """The same of any other store that fsspec knows."""

    def __init__(self, uri: str) -> None:
        import fsspec

        options = {"auto_mkdir": True} if uri.startswith("file://") else {}
        self._system, self._root = fsspec.core.url_to_fs(f"{uri}/monitoring", **options)
        self._system.invalidate_cache()

    def names(self, pattern: str) -> list[str]:
        return [name.removeprefix(self._root).lstrip("/") for name in self._system.glob(f"{self._root}/{pattern}")]

    def get(self, files: Mapping[str, Path]) -> None:
        for name, file in files.items():
            self._system.get_file(f"{self._root}/{name}", str(file))

    def put(self, files: Mapping[str, Path]) -> None:
        for name, file in sorted(files.items()):
            self._system.put_file(str(file), f"{self._root}/{name}")


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[_Objects | _Files]:
    """`monitoring` below a store's URI; whatever a store's client raises is told as ours."""
    try:
        yield _Objects(uri) if uri.startswith(s3.SCHEME) else _Files(uri)
    except BloomeryError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        raise ServiceError(
            f"{uri}: the store did not answer: {reason}; check the network, the bucket and the credentials"
        ) from error


@contextlib.contextmanager
def at(workdir: Path | str) -> Iterator[Home]:
    """The home of `workdir`, a folder or a store's URI; what has changed on a copy is put back at the end.

    Raises: ConfigError for an S3 store's URI without a bucket.
    """
    if "://" not in str(workdir):
        yield Home(Path(workdir))
        return
    if str(workdir).startswith(s3.SCHEME):
        s3.is_uri(str(workdir))
    with tempfile.TemporaryDirectory(prefix="bloomery-monitoring-") as folder:
        home = Home(Path(folder), str(workdir))
        home.fetch(*RECORDS)
        try:
            yield home
        finally:
            home.save()


def _state(file: Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size
