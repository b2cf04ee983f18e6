"""Where checks keep what they know: the workdir of one machine, or a prefix of a store that pods and people share.

On a store a check works on a copy: it fetches the records and the windows that it needs, and puts back what it has
changed, before it starts anything and at its end. Records of triggers go last, so that whoever finds one finds the rows
that it speaks of. Locks hold on one machine alone: on a cluster the recurring run lets one check run at a time, and the
key of a retraining is the name of its run, so that a second start finds the first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import ServiceError

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

        Raises: ServiceError if the store does not answer.
        """
        if not self._uri:
            return
        with self._store() as (system, root):
            system.invalidate_cache()
            for pattern in patterns:
                for file in system.glob(f"{root}/{pattern}"):
                    target = self.folder / file.removeprefix(root).lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(file, str(target))
                    self._saved[target] = _state(target)

    def save(self) -> None:
        """Put back what has changed, whole files, records last. Raises: ServiceError if the store does not answer."""
        if not self._uri:
            return
        records = self.folder / "triggers"
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
        changed = [f for f in files if not f.name.startswith(".") and self._saved.get(f) != _state(f)]
        with self._store() as (system, root):
            for file in sorted(changed, key=lambda file: (file.parent == records, file)):
                state = _state(file)
                system.put_file(str(file), f"{root}/{file.relative_to(self.folder).as_posix()}")
                self._saved[file] = state

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """(file system, its path of `monitoring`); whatever a store's client raises is told as ours."""
        import fsspec

        options = {"auto_mkdir": True} if self._uri.startswith("file://") else {}
        try:
            system, root = fsspec.core.url_to_fs(f"{self._uri}/monitoring", **options)
            yield system, root
        except Exception as error:
            reason = str(error).split("\n")[0][:300] or type(error).__name__
            raise ServiceError(
                f"{self._uri}: the store did not answer: {reason}; check the network, the bucket and the credentials"
            ) from error


@contextlib.contextmanager
def at(workdir: Path | str) -> Iterator[Home]:
    """The home of `workdir`, a folder or a store's URI; what has changed on a copy is put back at the end."""
    if "://" not in str(workdir):
        yield Home(Path(workdir))
        return
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
