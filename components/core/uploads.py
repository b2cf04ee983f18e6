"""Files and folders of a user's machine on an object store, under their content, and from there into a pod's cache.

    s3://bucket/prefix/sha256-<digest>/<name>        a file, or a folder with its files
    s3://bucket/prefix/sha256-<digest>/files.json    of a folder: the sha256 of every file by its name, written last

The digest is that of the file, or of the listing, so that nothing is sent twice and what comes back can be checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bloomery.components.core import artifact, s3
from bloomery.components.core.config import digest
from bloomery.components.core.errors import DataError, from_os_error

LISTING = "files.json"
_BY_CONTENT = re.compile(r"(?P<place>s3://.+/sha256-(?P<digest>[0-9a-f]{64}))/(?P<name>[^/]+)/?")


def cache_folder() -> Path:
    """Where what is made or fetched once is kept: `$BLOOMERY_CACHE`, or `bloomery` under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bloomery"
    return Path(os.environ.get("BLOOMERY_CACHE", default))


def uploaded(root: Path, files: Sequence[Path], prefix: str) -> str:
    """The URI under `prefix` of the file `root`, or of the folder `root` with `files` of it; what it lacks is sent.

    Raises: ConfigError what the store refuses, ServiceError if it does not answer, DataError for a file that cannot be
    read, or is written to meanwhile: what was sent of it is taken back, for its name is that of other bytes.
    """
    try:
        before = {file: _state(file) for file in files}
        if list(files) == [root]:
            place = f"{prefix.rstrip('/')}/sha256-{artifact.file_digest(root)}"
            if root.name not in s3.names(place):
                _send(place, {root.name: root}, before)
            return f"{place}/{root.name}"
        digests = {file.relative_to(root).as_posix(): artifact.file_digest(file) for file in files}
        place = f"{prefix.rstrip('/')}/sha256-{digest(digests)}"
        there = s3.names(place)
        if LISTING not in there:
            named = {f"{root.name}/{name}": root / name for name in digests}
            _send(place, {name: file for name, file in named.items() if name not in there}, before)
            s3.put_text(f"{place}/{LISTING}", json.dumps(digests, ensure_ascii=False))
        return f"{place}/{root.name}"
    except OSError as error:
        raise from_os_error(error, f"uploading {root}") from error


def _send(place: str, files: Mapping[str, Path], before: Mapping[Path, tuple[int, int]]) -> None:
    """Write files under `place`, by name, if they are still as `before`, when their digests were not known yet."""
    s3.put({f"{place}/{name}": file for name, file in files.items()})
    if changed := [name for name, file in files.items() if _state(file) != before[file]]:
        s3.delete(place, found=changed)
        raise DataError(f"{files[changed[0]]}: written to while it was uploaded; submit again when it is at rest")


def _state(file: Path) -> tuple[int, int]:
    """What differs when a file has been written to: its size, and when that was in nanoseconds."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def fetched(uri: str) -> Path:
    """The file or folder at a path of this machine as it is; that at `s3://…` in this machine's cache.

    What lies under its content is fetched once and its digests are checked; of a folder with a manifest, those that it
    names; of anything else the lengths, and it is fetched anew by each process.
    Raises: DataError for what is not there or not what its digest says; else as `uploaded`.
    """
    if "://" not in uri or uri.startswith("file://"):
        return Path(uri.removeprefix("file://")).expanduser()
    s3.is_uri(uri)
    named = _BY_CONTENT.fullmatch(uri)
    if named is None:
        return _fetch(uri, _cache() / "fetched" / digest(uri)[:24] / uri.rstrip("/").rpartition("/")[2])
    target = _cache() / "fetched" / named["digest"] / named["name"]
    if target.exists():
        return target
    listing = s3.text(f"{named['place']}/{LISTING}")
    if listing is None:
        return _fetch(uri, target, {"": named["digest"]})
    try:
        digests = json.loads(listing)
    except ValueError:
        digests = None
    if digest(digests) != named["digest"]:
        raise DataError(f"{named['place']}/{LISTING}: not the listing of its digest; delete it and submit again")
    return _fetch(uri, target, digests)


def _fetch(uri: str, target: Path, digests: dict[str, str] | None = None) -> Path:
    """Fetch the object `uri` (the name `""`), or those under it, to `target`, which appears whole."""
    uri = uri.rstrip("/")
    names = list(digests) if digests is not None else s3.names(uri) or [""]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            whole = Path(folder) / target.name
            if digests is None and artifact.MANIFEST in names:
                digests = _of_manifest(uri, Path(folder) / artifact.MANIFEST)
            for name in names:
                file = whole / name
                file.parent.mkdir(parents=True, exist_ok=True)
                s3.get(f"{uri}/{name}".rstrip("/"), file, (digests or {}).get(name))
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(whole, target)
    except OSError as error:
        raise from_os_error(error, f"fetching {uri}") from error
    return target


def _of_manifest(uri: str, file: Path) -> dict[str, str]:
    s3.get(f"{uri}/{artifact.MANIFEST}", file)
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["files"]
        return {name: entry["sha256"] for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError):
        return {}  # another program's


def _cache() -> Path:
    """The cache, or where the user's folder cannot be written, as in a pod, one beside the temporary files."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "bloomery"
    return cache_folder() if os.access(cache_folder(), os.W_OK) else Path(tempfile.gettempdir()) / "bloomery"
