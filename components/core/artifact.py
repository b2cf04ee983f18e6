"""A step's directories: what they hold, when they are whole, and what they were made from.

An artifact is a directory of Parquet shards or of a checkpoint, and `manifest.json`, written last by an atomic rename.
Without a manifest it is unfinished and readers refuse it. The digest of an artifact is over its content alone, so the
same inputs, config and seed give the same digest at any time on any machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ValidationError

from bloomery.components.core.config import Config, digest
from bloomery.components.core.errors import DataError, from_os_error
from bloomery.components.core.records import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
ROWS_PER_SHARD = 100_000
"""Bounds the memory of a reader that takes one shard at a time: about 200 MB of 300-word documents."""


@dataclass(frozen=True)
class Reads:
    """Marks a `Path` argument of a step as an input of this schema.

    No named tuple: it would equal a `Writes` of the same schema, and typing in Python 3.11.2 keeps one of equals.
    """

    schema: str


@dataclass(frozen=True)
class Writes:
    """Marks a `Path` argument of a step as an output of this schema."""

    schema: str


class FileEntry(Config):
    """A file of an artifact."""

    sha256: str
    bytes: int


class Manifest(Config):
    """What stands in `manifest.json`."""

    schema_name: str
    """`name/version` of the rows, or of the kind of checkpoint."""
    digest: str
    """Hex sha256 over schema and files: the identity of the content."""
    rows: int
    """Rows kept; 0 for checkpoints."""
    rows_in: int
    """Rows that entered the step."""
    rows_made: int
    """Rows that the step made itself."""
    dropped: dict[str, int]
    """Rows not kept, by reason."""
    files: dict[str, FileEntry]
    step: str = ""
    config: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    """Digest of each input artifact."""
    package_version: str = ""
    created: str
    """ISO 8601, UTC."""

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the files."""
        return sum(entry.bytes for entry in self.files.values())


_lineage: ContextVar[dict[str, Any] | None] = ContextVar("lineage", default=None)


@contextlib.contextmanager
def lineage(step: str, config: dict[str, Any], inputs: Mapping[str, str]) -> Iterator[None]:
    """Manifests written inside name `step`, its resolved `config` and the digests of its `inputs`."""
    token = _lineage.set({"step": step, "config": config, "inputs": dict(inputs), "package_version": version()})
    try:
        yield
    finally:
        _lineage.reset(token)


def version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import version as installed

    return installed("bloomery")


def write_rows(
    path: Path,
    schema: str,
    rows: pa.Table | Iterable[pa.Table],
    *,
    rows_in: int | None = None,
    rows_made: int = 0,
    dropped: Mapping[str, int] | None = None,
) -> Manifest:
    """Write `rows` as Parquet shards under `path` and seal it.

    `rows_in` is the number of rows that entered (default: as many as are written), `rows_made` those the step made,
    `dropped` those not kept, by reason.
    Raises: DataError if rows_in + rows_made is not rows kept + dropped: a row was lost or counted twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = ROWS[schema].arrow()
    path.mkdir(parents=True, exist_ok=True)
    kept = 0
    tables = [rows] if isinstance(rows, pa.Table) else rows
    with _disk(path):
        shard = 0
        for table in tables:
            table = table.select(arrow.names).cast(arrow)
            for start in range(0, max(table.num_rows, 1), ROWS_PER_SHARD):
                part = table.slice(start, ROWS_PER_SHARD)
                if part.num_rows or shard == 0:
                    pq.write_table(part, path / f"part-{shard:05d}.parquet", compression="zstd")
                    shard += 1
                    kept += part.num_rows
    counts = {reason: count for reason, count in sorted((dropped or {}).items()) if count}
    entered = kept + sum(counts.values()) - rows_made if rows_in is None else rows_in
    if entered + rows_made != kept + sum(counts.values()):
        raise DataError(
            f"{path.name}: {entered} rows in + {rows_made} made is not {kept} kept + {sum(counts.values())} dropped "
            f"{counts}; a row was lost or counted twice in {(_lineage.get() or {}).get('step', 'the caller')}"
        )
    return seal(path, schema, rows=kept, rows_in=entered, rows_made=rows_made, dropped=counts)


def seal(
    path: Path,
    schema: str,
    *,
    rows: int = 0,
    rows_in: int = 0,
    rows_made: int = 0,
    dropped: dict[str, int] | None = None,
) -> Manifest:
    """Write the manifest over every file that stands under `path`; from then on the artifact is whole."""
    files = {
        file.relative_to(path).as_posix(): FileEntry(sha256=file_digest(file), bytes=file.stat().st_size)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = Manifest(
        schema_name=schema,
        digest=digest([schema, {name: entry.sha256 for name, entry in files.items()}]),
        rows=rows,
        rows_in=rows_in,
        rows_made=rows_made,
        dropped=dropped or {},
        files=files,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **(_lineage.get() or {}),
    )
    with _disk(path):
        write_atomically(path / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def read_manifest(path: Path, schema: str | None = None) -> Manifest:
    """The manifest of a whole artifact.

    Raises: DataError if there is none, if a file is missing or of another size, or if the schema is not `schema`.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise DataError(f"{path}: no {MANIFEST}, so the step that writes '{path.name}' did not finish; run it again")
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except ValidationError:
        raise DataError(f"{file}: not a manifest of this version ({version()}); run the step again") from None
    for name, entry in manifest.files.items():
        found = path / name
        if not found.is_file() or found.stat().st_size != entry.bytes:
            raise DataError(f"{found}: missing or not {entry.bytes} bytes, as its manifest says; run the step again")
    if schema is not None and manifest.schema_name != schema:
        raise DataError(f"{path}: holds {manifest.schema_name}, but {schema} is read here; check the wiring")
    return manifest


def read_table(path: Path, schema: str) -> pa.Table:
    """All rows of an artifact as one Arrow table."""
    import pyarrow.parquet as pq

    read_manifest(path, schema)
    return pq.read_table(sorted(path.glob("part-*.parquet")), schema=ROWS[schema].arrow())


def ports(run: Any, kind: type) -> dict[str, str]:
    """Schema by argument name of the inputs (`kind=Reads`) or outputs (`kind=Writes`) of a step's `run`."""
    found = {}
    for name, hint in get_type_hints(run, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, kind):
                found[name] = mark.schema  # type: ignore[attr-defined]
    return found


def file_digest(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(file: Path, text: str) -> None:
    """Write `text` so that `file` is either as before or whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a copy of `source` that shares its bytes; across file systems the bytes are copied."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _disk(target):
        shutil.copytree(source, target, copy_function=link)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
