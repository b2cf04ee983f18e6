"""Folders on an object store: whole or absent, whoever writes them and whenever he is killed.

A tree lies under a URI: the files of each attempt to write it under a name of the attempt's own, and `whole.json`,
written last, which says which attempt is the tree, and the size and sha256 of each of its files. Without it there is no
tree. So two that write at once disturb each other in nothing, and what comes down is what went up.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from bloomery.components.core import artifact, s3
from bloomery.components.core.errors import DataError

logger = logging.getLogger(__name__)

MARKER = "whole.json"


def put(uri: str, folders: Mapping[str, Path], facts: Mapping[str, Any] | None = None, *, first: bool = False) -> bool:
    """Write `folders`, by name, and `facts` (JSON) as the tree at `uri`.

    With `first` a tree that is there stays. Returns whether the tree is now this one; what other attempts have left is
    deleted if it is, and what this one wrote if not.
    Raises: ConfigError what the store refuses, ServiceError if it does not answer.
    """
    attempt = uuid4().hex[:16]
    files, paths = {}, {}
    for folder, path in folders.items():
        for name, entry in _files(path).items():
            files[f"{folder}/{name}"] = entry.model_dump()
            paths[f"{uri}/{attempt}/{folder}/{name}"] = path / name
    s3.put(paths)
    marker = json.dumps({"attempt": attempt, "files": files, "facts": facts or {}}, indent=1)
    # A store that knows no If-None-Match lets two be the first: the marker that is there at last counts.
    is_ours = s3.put_text(f"{uri}/{MARKER}", marker, first=first) and s3.text(f"{uri}/{MARKER}") == marker
    if is_ours:
        there = set(s3.names(uri))
        s3.put({place: path for place, path in paths.items() if place.removeprefix(f"{uri}/") not in there})
        s3.delete(uri, but=(attempt, MARKER), found=there)
    else:
        s3.delete(f"{uri}/{attempt}")
    return is_ours


def get(uri: str, targets: Mapping[str, Path]) -> dict[str, Any] | None:
    """Make the folders of the tree at `uri` stand at `targets`, by name, in the place of what is there; its facts.

    None, and nothing changed, where there is no tree, or one that is not as its marker says, which is then no more.
    Raises: as `put`; OSError where the disk refuses.
    """
    marker = f"{uri}/{MARKER}"
    told = s3.text(marker)
    coming = {name: path.with_name(f".{path.name}.{os.getpid()}.unfinished") for name, path in targets.items()}
    while told is not None:
        try:
            facts = _fetch(uri, told, coming)
            for name, path in targets.items():
                shutil.rmtree(path, ignore_errors=True)
                os.replace(coming[name], path)
            return facts
        except (AttributeError, DataError, KeyError, TypeError, ValueError) as error:
            seen, told = told, s3.text(marker)
            if told == seen:  # else another has written it meanwhile
                logger.warning("%s is not as its %s says, and is made again: %s", uri, MARKER, error)
                s3.delete(uri)
                told = None
        finally:
            for path in coming.values():
                shutil.rmtree(path, ignore_errors=True)
    return None


def names(uri: str) -> list[str]:
    """Names of the trees that lie next under `uri`, sorted so that of two with numbers the smaller comes first."""
    found = [PurePosixPath(name) for name in s3.names(uri)]
    return sorted(
        (str(name.parent) for name in found if name.name == MARKER and len(name.parts) == 2),
        key=lambda name: (len(name), name),
    )


def _files(folder: Path) -> dict[str, artifact.FileEntry]:
    """The files of a folder; those of an artifact with the digests that its manifest has."""
    known = artifact.read_manifest(folder).files if (folder / artifact.MANIFEST).is_file() else {}
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    fresh = [file for file in found if file.relative_to(folder).as_posix() not in known]
    with ThreadPoolExecutor(s3.THREADS) as pool:
        digests = dict(zip(fresh, pool.map(artifact.file_digest, fresh), strict=True))
    return {
        name: known.get(name) or artifact.FileEntry(sha256=digests[file], bytes=file.stat().st_size)
        for file in found
        for name in [file.relative_to(folder).as_posix()]
    }


def _fetch(uri: str, told: str, targets: Mapping[str, Path]) -> dict[str, Any]:
    """Read the files that the marker `told` lists into `targets`; its facts."""
    marker = json.loads(told)
    files = {}
    for name, entry in marker["files"].items():
        folder, _, rest = name.partition("/")
        if ".." in PurePosixPath(rest).parts or rest.startswith("/"):
            raise DataError(f"{name}: no file of it")
        files[f"{uri}/{marker['attempt']}/{name}"] = targets[folder] / rest, entry["sha256"]
    for folder in targets.values():
        folder.mkdir(parents=True)
    s3.get_all(files)
    return marker["facts"]
