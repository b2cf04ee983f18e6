"""The store of finished results, found by content: a folder, or a place on an object store that many machines share.

`BLOOMERY_STORE` names it, a folder or `s3://bucket/prefix`. In both an entry is whole or absent, and beside it lies
what a step that has not ended needs to go on (`unfinished.py`). In a folder a step writes into the entry to be, which
takes its name in one rename, and its outputs share the bytes; who wants the same entry meanwhile waits for it. For an
object store it writes to its outputs, which are then copied there (`trees.py`); the first whole entry of a key stays,
and whoever comes second takes that.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, s3, scratch, trees, unfinished
from bloomery.components.core.errors import BloomeryError, DataError

logger = logging.getLogger(__name__)

RESULT = "result.json"

Outputs = Mapping[str, Path]
"""Where each port of a step is written."""
Work = Callable[[Outputs], dict[str, Any]]
"""Runs a step that writes to the paths it is given, checks that what it wrote is whole, and returns its result."""


def named() -> str | None:
    """The store that BLOOMERY_STORE names; None where it names none."""
    return os.environ.get("BLOOMERY_STORE") or None


def entry(store: str, name: str, writes: Mapping[str, str]) -> InFolder | OnObjects:
    """The place in `store` of the result `name` of a step with these ports and schemas; it may hold none yet."""
    if s3.is_uri(store):
        return OnObjects(f"{store.rstrip('/')}/{name}", writes)
    return InFolder(Path(store) / name, writes)


@dataclass(frozen=True)
class InFolder:
    """A result in a folder of this machine."""

    path: Path
    writes: Mapping[str, str]

    def take(self, outputs: Outputs) -> dict[str, Any] | None:
        """The result, with its artifacts at `outputs`; None where there is none that is whole."""
        try:
            result: dict[str, Any] = json.loads((self.path / RESULT).read_text())
            for port, schema in self.writes.items():
                artifact.read_manifest(self.path / port, schema)
        except (OSError, ValueError, DataError):
            return None
        for port in self.writes:
            artifact.link_tree(self.path / port, outputs[port])
        shutil.rmtree(self._checkpoints, ignore_errors=True)  # whoever finished it may have been killed before this
        return result

    def make(self, outputs: Outputs, work: Work) -> dict[str, Any]:
        """The result of `work`, kept here, with its artifacts at `outputs`; or that of another process, if this one
        had to wait for it."""
        with scratch.beside(self.path) as made:
            if (found := self.take(outputs)) is not None:
                return {**found, "cached": True}
            with unfinished.kept_in(self._checkpoints):
                result = work({port: made / port for port in self.writes})
                artifact.write_atomically(made / RESULT, json.dumps(result))
                shutil.rmtree(self.path, ignore_errors=True)
                os.replace(made, self.path)
        for port in self.writes:
            artifact.link_tree(self.path / port, outputs[port])
        return result

    @property
    def _checkpoints(self) -> Path:
        return self.path.with_name(f"{self.path.name}.checkpoints")


@dataclass(frozen=True)
class OnObjects:
    """A result on an object store."""

    uri: str
    writes: Mapping[str, str]

    def take(self, outputs: Outputs) -> dict[str, Any] | None:
        """As that of a folder. Raises: ConfigError what the store refuses, ServiceError if it does not answer."""
        result = trees.get(self.uri, {port: outputs[port] for port in self.writes})
        if result is None:
            return None
        for port, schema in self.writes.items():
            artifact.read_manifest(outputs[port], schema)
        s3.delete(self.checkpoints)  # as that of a folder
        return result

    def make(self, outputs: Outputs, work: Work) -> dict[str, Any]:
        """As that of a folder; a result that another process had whole before this one is taken in its place. What the
        store does not take is told, and costs the next run the work from the last checkpoint, but not this one its
        result.

        Raises: ConfigError or ServiceError where the store, asked for checkpoints before the work, is not there.
        """
        with unfinished.kept_at(self.checkpoints):
            result = work(outputs)
        try:
            if not trees.put(self.uri, {port: outputs[port] for port in self.writes}, result, first=True):
                logger.info("another process finished the same work first: its result is taken")
                result = self.take(outputs) or result
        except BloomeryError as error:
            logger.warning("the result is not kept for another run: %s", error)
        else:
            s3.delete(self.checkpoints)
        return result

    @property
    def checkpoints(self) -> str:
        """Where a step that has not ended keeps what it needs to go on."""
        return f"{self.uri}.checkpoints"


def remembered(name: str) -> str | None:
    """The small text that `remember` put into the store under `name`; None where there is none, or no store."""
    store, uri = named(), _uri(name)
    if uri is not None:
        return s3.text(uri)
    file = Path(store or "") / name
    return file.read_text(encoding="utf-8") if store and file.is_file() else None


def remember(name: str, content: str) -> None:
    """Keep a small text for other runs, where there is a store."""
    store, uri = named(), _uri(name)
    if uri is not None:
        s3.put_text(uri, content)
    elif store:
        file = Path(store) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_atomically(file, content)


def shared(name: str) -> Path | None:
    """The folder `name` that all processes of the running step see: of a store on a disk the one in it, which is whole
    if it is there; else one of this machine, which goes with the step. None where there is no store, or no step."""
    store = named()
    place = unfinished.place() if _uri(name) else store and Path(store)
    return place / name if place else None


def fetch(name: str, folder: Path) -> bool:
    """Whether the store is on objects and has a folder `name`, which then stands at `folder`."""
    uri = _uri(name)
    return uri is not None and trees.get(uri, {unfinished.CONTENT: folder}) is not None


def keep(name: str, folder: Path) -> None:
    """Copy a whole folder to the store, where this is on objects; what it does not take is told."""
    uri = _uri(name)
    try:
        if uri is not None:
            trees.put(uri, {unfinished.CONTENT: folder}, first=True)
    except BloomeryError as error:
        logger.warning("%s is not kept for another run: %s", name, error)


def _uri(name: str) -> str | None:
    """Where the store has `name`, if it is on objects."""
    store = named()
    return f"{store.rstrip('/')}/{name}" if store and s3.is_uri(store) else None
