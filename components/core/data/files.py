"""The files that a path or URI stands for, and their bytes. A path that leads to nothing, and a store that does not
answer, are errors; what is in a file is none."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bloomery.components.core import s3
from bloomery.components.core.data.hub_folders import data_files
from bloomery.components.core.errors import BloomeryError, DataError, MissingExtraError, ServiceError, from_os_error

_SPOOL_BYTES = 64 * 2**20
_MAGIC = re.compile(r"[*?\[]")


def list_files(uri: str) -> list[str]:
    """The files that a file, folder (recursive), glob or URI stands for, sorted; hidden ones are left out, and in a
    folder with rows its README, licence and metadata.

    Raises: DataError if there is nothing or a name is not UTF-8, MissingExtraError if the protocol needs a package
    that is not installed, ServiceError if the store does not answer, ConfigError what an object store refuses.
    """
    if uri.startswith(s3.SCHEME):
        files = _list_objects(uri)
    else:
        files = _list_remote(uri) if is_remote(uri) else _list_local(uri)
    for file in files:
        try:
            file.encode()
        except UnicodeEncodeError:
            raise DataError(f"{file!r}: a file name that is not UTF-8 cannot be written down; rename it") from None
    if not files:
        raise DataError(f"{uri}: no file there; expected a file, a folder with files, a glob or a URI")
    return files


@contextlib.contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """The bytes of a file; a remote one is fetched whole: a failing network must not look like bad data."""
    if not is_remote(uri):
        try:
            stream = Path(_local(uri)).expanduser().open("rb")
        except OSError as error:
            raise from_os_error(error, f"opening {uri}") from error
        with stream:
            yield stream
        return
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as copy:
        if uri.startswith(s3.SCHEME):
            with _service(uri):
                s3.copy(uri, copy)  # type: ignore[arg-type]
        else:
            system, path = _file_system(uri)
            with _service(uri), system.open(path, "rb") as remote:
                shutil.copyfileobj(remote, copy)
        copy.seek(0)
        yield copy


def is_remote(uri: str) -> bool:
    """Whether it is in a store."""
    return "://" in uri and not uri.startswith("file://")


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _list_local(uri: str) -> list[str]:
    path = Path(_local(uri)).expanduser()
    try:
        if path.is_file():
            return [str(path)]
        if path.is_dir():
            visible = (file for file in _walked(path) if not _is_hidden(file.relative_to(path).as_posix()))
            return data_files(str(path), sorted(str(file) for file in visible if _is_there(file)))
        # Python's glob leaves hidden names out by itself.
        return sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    except OSError as error:
        raise from_os_error(error, f"listing {uri}") from error


def _walked(path: Path) -> Iterator[Path]:
    """The files under a folder and under those that it links to, each folder once: links may go round. (Path.rglob
    passes over a folder that may not be read, and says nothing.)"""
    seen = set()
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _is_there(file: Path) -> bool:
    """Whether it is a file, and no pipe or socket. Raises: DataError for a link to nothing."""
    if file.is_symlink() and not file.exists():
        raise DataError(f"{file}: a link to {os.readlink(file)}, where nothing is; restore it, or take the link away")
    return file.is_file()


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _list_objects(uri: str) -> list[str]:
    """By the client that reads them, which tries again and tells a refusal with its code; fsspec's does so in silence,
    and knows of a refusal that it is one."""
    from fsspec.utils import glob_translate

    if magic := _MAGIC.search(uri):
        folder = uri[: magic.start()].rpartition("/")[0]
        pattern = re.compile(glob_translate(uri))
        return [file for file in _visible_objects(folder) if pattern.match(file)]
    if files := _visible_objects(uri.rstrip("/")):
        return data_files(uri, files)
    return [uri] if s3.is_there(uri) else []


def _visible_objects(folder: str) -> list[str]:
    names = s3.names(folder)
    return sorted(f"{folder}/{name}" for name in names if name and not name.endswith("/") and not _is_hidden(name))


def _list_remote(uri: str) -> list[str]:
    system, root = _file_system(uri)
    protocol = uri.split("://")[0]
    with _service(uri):
        if protocol in ("http", "https"):
            system.info(root)
            return [uri]
        if glob.has_magic(root):
            entries = system.glob(root, detail=True)
            found = [name for name, entry in entries.items() if entry["type"] == "file"]
        else:
            found = system.find(root)
        base = root.rstrip("/")
        visible = [name for name in found if not _is_hidden(name.removeprefix(base).lstrip("/"))]
        files = sorted(f"{protocol}://{name.removeprefix(f'{protocol}://')}" for name in visible)
        return files if glob.has_magic(root) else data_files(uri, files)


def _file_system(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URI."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = uri.split("://")[0]
    if protocol not in known_implementations:
        known = "a local path, s3://, gs://, hf:// or https://"
        raise DataError(f"{uri}: unknown protocol '{protocol}'; expected {known}")
    try:
        with _service(uri):
            return fsspec.core.url_to_fs(uri)
    except ImportError:
        module = known_implementations[protocol]["class"].split(".")[0]
        package = {"fsspec": "aiohttp"}.get(module, module)
        raise MissingExtraError(f"{uri}: {protocol}:// needs a package; run: pip install {package}") from None


@contextlib.contextmanager
def _service(uri: str) -> Iterator[None]:
    """Tell a remote store's own exceptions as ours: every client raises others."""
    try:
        yield
    except (ImportError, BloomeryError):
        raise
    except FileNotFoundError as error:
        # fsspec tells an unreachable host as a missing file, with the real reason as its cause.
        if error.__cause__ is not None and not isinstance(error.__cause__, FileNotFoundError):
            message = f"{uri}: the store did not answer: {error.__cause__}; check the network"
            raise ServiceError(message) from error
        raise DataError(f"{uri}: no file there; check the URI") from None
    except PermissionError as error:
        raise DataError(f"{uri}: permission denied ({error}); check the credentials") from None
    except Exception as error:
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        raise ServiceError(f"{uri}: the store did not answer: {reason}; check the network and credentials") from error
