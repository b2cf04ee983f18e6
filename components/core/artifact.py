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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ValidationError

from bloomery.components.core import scratch
from bloomery.components.core.config import Config, digest
from bloomery.components.core.errors import DataError, from_os_error
from bloomery.components.core.parallel import num_cores
from bloomery.components.core.records import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
ROWS_PER_SHARD = 50_000
"""Bounds the memory of a reader that takes one shard at a time: about 100 MB of 300-word documents."""
CACHE_BYTES = 2**30
"""Rows that `Shards` keeps in memory; what goes beyond is read from disk each time."""


@dataclass(frozen=True)
class Reads:
    """Marks a `Path` argument of a step as an input of this schema.

    No named tuple: it would equal a `Writes` of the same schema, and typing in Python 3.11.2 keeps one of equals.
    """

    schema: str
    optional: bool = False
    """The step can do without it: `run` then gets None."""
    named: bool = False
    """It is no newest artifact but that of a stage which the config names: see core/modelling/named_models.py."""


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


class Writer:
    """Writes rows as Parquet shards of ROWS_PER_SHARD under `path` and seals them when it is closed.

    Shards are cut by rows alone, so that the batches in which rows come leave no trace; they are encoded on other
    cores while more rows come.
    """

    def __init__(self, path: Path, schema: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        """Rows added so far."""
        self._schema = schema
        self._arrow = ROWS[schema].arrow()
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._num_shards = 0
        self._pool = ThreadPoolExecutor(num_cores())
        self._pending: deque[Future[None]] = deque()

    def add(self, table: pa.Table) -> None:
        """Add rows; raises a BloomeryError where the disk refuses."""
        self.rows += table.num_rows
        while table.num_rows:
            part = table.slice(0, ROWS_PER_SHARD - self._num_waiting)
            self._waiting.append(part.select(self._arrow.names).cast(self._arrow))
            self._num_waiting += part.num_rows
            table = table.slice(part.num_rows)
            if self._num_waiting == ROWS_PER_SHARD:
                self._flush()

    def close(
        self, *, rows_in: int | None = None, rows_made: int = 0, dropped: Mapping[str, int] | None = None
    ) -> Manifest:
        """Write what is left, and the manifest.

        `rows_in` is the number of rows that entered (default: as many as are written), `rows_made` those the step
        made, `dropped` those not kept, by reason.
        Raises: DataError if rows_in + rows_made is not rows kept + dropped: a row was lost or counted twice.
        """
        if self._num_waiting or not self._num_shards:
            self._flush()
        with self._pool:
            while self._pending:
                self._finish_first()
        counts = {reason: count for reason, count in sorted((dropped or {}).items()) if count}
        told = sum(counts.values())
        entered = self.rows + told - rows_made if rows_in is None else rows_in
        if entered + rows_made != self.rows + told:
            raise DataError(
                f"{self.path.name}: {entered} rows in + {rows_made} made is not {self.rows} kept + {told} dropped "
                f"{counts}; a row was lost or counted twice in {(_lineage.get() or {}).get('step', 'the caller')}"
            )
        return seal(
            self.path, self._schema, rows=self.rows, rows_in=entered, rows_made=rows_made, dropped=counts
        )

    def _flush(self) -> None:
        import pyarrow as pa

        # One chunk: where chunks end must not show in the bytes of the file.
        shard = pa.concat_tables([self._arrow.empty_table(), *self._waiting]).combine_chunks()
        file = self.path / f"part-{self._num_shards:05d}.parquet"
        if len(self._pending) == num_cores():
            self._finish_first()
        self._pending.append(self._pool.submit(_write_shard, shard, file))
        self._num_shards += 1
        self._waiting, self._num_waiting = [], 0

    def _finish_first(self) -> None:
        with _disk(self.path):
            self._pending.popleft().result()


def _write_shard(shard: pa.Table, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(shard, file, compression="zstd")


def write_rows(
    path: Path,
    schema: str,
    rows: pa.Table,
    *,
    rows_in: int | None = None,
    rows_made: int = 0,
    dropped: Mapping[str, int] | None = None,
) -> Manifest:
    """Write one table under `path` and seal it; see Writer."""
    writer = Writer(path, schema)
    writer.add(rows)
    return writer.close(rows_in=rows_in, rows_made=rows_made, dropped=dropped)


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
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    with ThreadPoolExecutor(num_cores()) as pool:
        files = {
            file.relative_to(path).as_posix(): FileEntry(sha256=sha256, bytes=file.stat().st_size)
            for file, sha256 in zip(found, pool.map(file_digest, found), strict=True)
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
        raise wrong_schema(path, manifest.schema_name, schema)
    return manifest


def wrong_schema(path: Path, found: str, expected: str) -> DataError:
    """The error of rows of another kind, or of another version of theirs."""
    (kind, _, old), (wanted, _, new) = found.partition("/"), expected.partition("/")
    if kind != wanted:
        return DataError(f"{path}: holds {found}, but {expected} is read here; check the wiring")
    age = "an older" if int(old) < int(new) else "a newer"
    return DataError(
        f"{path}: holds {found}, but {expected} is read here: it was written by {age} version; run the step again"
    )


def read_table(path: Path, schema: str) -> pa.Table:
    """All rows of an artifact as one Arrow table."""
    import pyarrow.parquet as pq

    read_manifest(path, schema)
    return pq.read_table(sorted(path.glob("part-*.parquet")), schema=ROWS[schema].arrow())


class Shards:
    """The rows of an artifact, one Parquet file at a time; files stay in memory as long as all fit in CACHE_BYTES."""

    def __init__(self, path: Path, schema: str) -> None:
        import pyarrow.parquet as pq

        read_manifest(path, schema)
        self._files = sorted(path.glob("part-*.parquet"))
        self._arrow = ROWS[schema].arrow()
        self._cache: dict[Path, pa.Table] = {}
        self._free = CACHE_BYTES
        self.num_rows = sum(pq.read_metadata(file).num_rows for file in self._files)

    def tables(self) -> Iterator[tuple[pa.Table, int]]:
        """(rows, index of the first) of each shard, each read once."""
        start = 0
        for file in self._files:
            table = self._read(file)
            yield table, start
            start += table.num_rows

    def batches(self, num_rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, at most `num_rows` at a time: no more of their texts stand in memory than these."""
        import pyarrow.parquet as pq

        for file in self._files:
            # By default whole columns are read ahead: of 27,000 long documents 110 MB more.
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as opened:
                yield from opened.iter_batches(num_rows, columns=columns)

    def _read(self, file: Path) -> pa.Table:
        import pyarrow.parquet as pq

        if file in self._cache:
            return self._cache[file]
        table = pq.read_table(file, schema=self._arrow)
        if table.nbytes <= self._free:
            self._free -= table.nbytes
            self._cache[file] = table
        return table

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all shards."""
        import pyarrow.parquet as pq

        return pq.read_table(self._files, columns=[name])[name]


def ports(run: Any, kind: type) -> dict[str, str]:
    """Schema by argument name of the inputs (`kind=Reads`) or outputs (`kind=Writes`) of a step's `run`."""
    return {name: mark.schema for name, mark in _marks(run) if isinstance(mark, kind)}  # type: ignore[attr-defined]


def optional_ports(run: Any) -> set[str]:
    """Names of the inputs that a step's `run` can do without."""
    return {name for name, mark in _marks(run) if isinstance(mark, Reads) and mark.optional}


def named_ports(run: Any) -> list[str]:
    """Names of the inputs that bring what stages wrote which the config names, in their order."""
    return [name for name, mark in _marks(run) if isinstance(mark, Reads) and mark.named]


def _marks(run: Any) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(run, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            yield name, mark


def file_digest(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(file: Path, text: str) -> None:
    """Write `text` so that `file` is either as before or whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link_tree(source: Path, target: Path, *, ignore: Callable[[str, list[str]], set[str]] | None = None) -> None:
    """Make `target` a copy of `source` that shares its bytes, whole or not at all; across file systems the bytes are
    copied. Of a folder's names `ignore` tells those to leave out."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    with _disk(target), scratch.beside(target) as made:
        shutil.copytree(source, made, ignore=ignore, copy_function=link, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made, target)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
