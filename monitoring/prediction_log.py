"""The prediction log: Parquet files of prediction/2 by day, written by many processes and read by time.

    LOG/date=2026-11-21/20261121T101502-4f1c09a2b7de-000001.parquet          prediction/2, by the day of the row's time
    LOG/labels/date=2026-11-24/20261124T080000-4f1c09a2b7de-000007.parquet   label/1, by the day of arrival

A writer puts what it has gathered into a new file of its own, so writers need no lock, and a file appears under its
name only when it is whole: by a rename on a disk, by one put on an object store (`s3://`). What a killed writer had
not yet written, at most `flush_seconds` of rows, is lost; what it had written stands. Personal data is masked before it
is written, by the rules of data_curation.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import threading
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bloomery.components.core import s3
from bloomery.components.core.artifact import MANIFEST
from bloomery.components.core.config import Config
from bloomery.components.core.data import pii, tables
from bloomery.components.core.data.chats import as_json, changed, chat
from bloomery.components.core.data.files import list_files, opened
from bloomery.components.core.errors import BloomeryError, DataError, ServiceError, from_os_error
from bloomery.components.core.records import Label, Prediction, Record

logger = logging.getLogger(__name__)

LABELS = "labels"
BATCH_ROWS = 1024
"""Rows of a file that a reader holds at once."""
MAX_WAITING_BYTES = 256 * 2**20
"""Files that wait while their store does not answer; beyond it the oldest are given up, and counted."""
_READ_AS_WELL = {"prediction/2": ("prediction/1",)}
"""Older versions whose rows are still read: a log is not written again."""
_DAY = re.compile(r"date=(\d{4}-\d{2}-\d{2})/$")


class _File(NamedTuple):
    """A file that is to be written; under one name, so that a put that is tried twice stores it once."""

    name: str
    data: bytes
    num_rows: int


class PredictionLog:
    """Appends to the log at `uri`, a folder or `s3://bucket/prefix`, from a thread of its own; any thread may call
    it."""

    def __init__(self, uri: str, *, flush_rows: int = 1000, flush_seconds: float = 30.0) -> None:
        """Write when `flush_rows` have gathered, or `flush_seconds` after the first of them.

        Raises: DataError if `uri` is a file, ConfigError if it is another store's than S3.
        """
        if _is_remote(uri):
            s3.is_uri(uri)
        elif _path(uri).is_file():
            raise DataError(f"{uri}: is a file; a prediction log is written to a folder or s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.num_written = 0
        """Rows that stand in the log."""
        self.num_lost = 0
        """Rows given up because the store did not answer for too long."""
        self.masked: Counter[str] = Counter()
        """Personal data masked, by kind."""
        self._rows: list[Record] = []
        self._files: deque[_File] = deque()
        self._writer = uuid.uuid4().hex[:12]
        self._num_files = 0
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._gathering = threading.Condition()
        self._writing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_in_time, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, rows: Iterable[Prediction]) -> None:
        """Take rows; they are written soon, and at `flush` or `close`. Raises: DataError for a time that is none."""
        self._take(rows)

    def label(self, request_id: str, *, label: str | None = None, feedback: float | None = None) -> None:
        """Say what became known of an answer; whoever reads the log finds it in the row of that id, the newest last."""
        moment = datetime.now(UTC).isoformat()
        self._take([Label(id=request_id, time=moment, feedback=feedback, label=label)])

    def flush(self) -> None:
        """Write everything taken so far. Raises: ServiceError if the disk or store does not take it, ConfigError if the
        store refuses; the rows are kept for the next."""
        with self._writing:
            with self._gathering:
                rows, self._rows = self._rows, []
            self._files.extend(self._encode(rows))
            while sum(len(file.data) for file in self._files) > MAX_WAITING_BYTES:
                self.num_lost += self._files.popleft().num_rows
            while self._files:
                _write(f"{self.uri}/{self._files[0].name}", self._files[0].data)
                self.num_written += self._files.popleft().num_rows

    def close(self) -> None:
        """Write everything, and take no more. Raises: as `flush`."""
        with self._gathering:
            self._is_closed = True
            self._gathering.notify()
        self._thread.join()
        self.flush()

    def _take(self, rows: Iterable[Record]) -> None:
        taken = list(rows)
        for row in taken:
            try:
                parse_time(row.time)  # type: ignore[attr-defined]
            except ValueError as error:
                raise DataError(f"{row.id}: {error}; expected ISO 8601") from None  # type: ignore[attr-defined]
        with self._gathering:
            if self._is_closed:
                raise ServiceError(f"{self.uri}: the prediction log is closed")
            self._rows += taken
            self._gathering.notify()

    def _write_in_time(self) -> None:
        while True:
            with self._gathering:
                self._gathering.wait_for(lambda: self._rows or self._files or self._is_closed)
                self._gathering.wait_for(
                    lambda: len(self._rows) >= self._flush_rows or self._is_closed, timeout=self._flush_seconds
                )
                if self._is_closed:
                    return
            try:
                self.flush()
            except BloomeryError as error:
                waiting = sum(file.num_rows for file in self._files)
                logger.warning("prediction log: %s; %d rows wait, %d are lost", error, waiting, self.num_lost)

    def _encode(self, rows: list[Record]) -> Iterator[_File]:
        """Masked rows as one file a kind and day."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_folder: dict[tuple[type[Record], str], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            values = row.model_dump()
            for field in ("prompt", "response", "label"):
                if values.get(field):
                    values[field] = self._mask(values[field])
            if values.get("messages"):
                values["messages"] = as_json(changed(json.loads(values["messages"]), lambda text: _masked(text)[0]))
            moment = parse_time(values["time"]).astimezone(UTC)
            values["time"] = moment.isoformat()
            folder = f"{LABELS}/" if isinstance(row, Label) else ""
            by_folder[type(row), f"{folder}date={moment:%Y-%m-%d}"].append(values)
        for (kind, folder), values_of_day in by_folder.items():
            sink = pa.BufferOutputStream()
            pq.write_table(kind.table(values_of_day), sink, compression="zstd", write_page_checksum=True)
            self._num_files += 1
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{self._writer}-{self._num_files:06d}.parquet"
            yield _File(f"{folder}/{name}", sink.getvalue().to_pybytes(), len(values_of_day))

    def _mask(self, text: str) -> str:
        text, found = _masked(text)
        self.masked += found
        return text


def _masked(text: str) -> tuple[str, Counter[str]]:
    # Whole, unlike a document's: what a user pastes into a code fence is as often a table of customers.
    text, secrets = pii.mask_secrets(text)
    text, personal = pii.mask(text)
    return text, secrets + personal


class Head(Config):
    """What a row is found by: the columns that say who answered when."""

    id: str
    time: str
    model_name: str
    model_version: str


class Reading:
    """One pass over a log; iterate it for (time, row) in the order of files, then see what was left out.

    Late labels stand in the rows. Days outside [`start`, `end`) are not opened. The log may also be a file, folder or
    URI of JSONL or Parquet rows without days. A file is read BATCH_ROWS at a time; held are the labels since `start`.
    With `heads_only` a row is a Head, or has its fields at least, and no text of a Parquet file is read.
    """

    def __init__(
        self, uri: str, start: datetime | None = None, end: datetime | None = None, *, heads_only: bool = False
    ) -> None:
        self.left_out: Counter[str] = Counter()
        """Rows that could not be used, by reason: why they could not be read, `wrong_fields`, `wrong_time`."""
        self.quarantined: dict[str, str] = {}
        """Files that are torn, corrupt or of another schema, and why; their rows are in no count."""
        self._uri, self._start, self._end = uri.rstrip("/"), start, end
        self._heads_only = heads_only
        self._unmatched: set[str] = set()

    @property
    def num_unknown_labels(self) -> int:
        """Ids that a label came for and no row was read of; with a `start`, those of earlier rows are among them."""
        return len(self._unmatched)

    def __iter__(self) -> Iterator[tuple[datetime, Any]]:
        """Raises: DataError if there is no log, ServiceError if its store does not answer."""
        first, last = (bound.astimezone(UTC).date() if bound else None for bound in (self._start, self._end))
        labels = self._labels(_files(f"{self._uri}/{LABELS}", first, None) or [])
        self._unmatched = set(labels)
        files = _files(self._uri, first, last)
        for file in list_files(self._uri) if files is None else files:
            if Path(file).name == MANIFEST:
                continue
            for moment, row in self._rows(file, Prediction):
                if (self._start and moment < self._start) or (self._end and moment >= self._end):
                    continue
                self._unmatched.discard(row.id)
                if row.id in labels and not self._heads_only:
                    row = row.model_copy(update={field: value for field, (_, value) in labels[row.id].items()})
                yield moment, row

    def _labels(self, files: list[str]) -> dict[str, dict[str, tuple[datetime, Any]]]:
        """The newest value of each field by id."""
        found: dict[str, dict[str, tuple[datetime, Any]]] = {}
        for file in files:
            for moment, row in self._rows(file, Label):
                known = found.setdefault(row.id, {})
                for field in ("feedback", "label"):
                    value = getattr(row, field)
                    if value is not None and (field not in known or known[field][0] <= moment):
                        known[field] = moment, value
        return found

    def _rows(self, file: str, kind: type[Record]) -> Iterator[tuple[datetime, Any]]:
        is_parquet = tables.format_of(file) == "parquet"
        form = Head if is_parquet and kind is Prediction and self._heads_only else kind
        for values in self._parquet(file, kind, list(form.model_fields)) if is_parquet else self._lines(file):
            try:
                row: Any = form.model_validate(values)
                moment = parse_time(row.time)
            except ValidationError:
                self.left_out["wrong_fields"] += 1
            except ValueError:
                self.left_out["wrong_time"] += 1
            else:
                if form is Prediction and not row.messages:
                    row = row.model_copy(update={"messages": as_json(chat(row.prompt))})
                yield moment, row

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        for raw in tables.read_rows(file):
            if raw.value is None:
                self.left_out[raw.problem] += 1
            else:
                yield raw.value

    def _parquet(self, file: str, kind: type[Record], columns: list[str]) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with opened(file) as stream:
            number = 0
            try:
                content = pq.ParquetFile(stream, page_checksum_verification=True)
                if fault := _other_schema(content.schema_arrow, kind):
                    self.quarantined[file] = fault
                    return
                for batch in content.iter_batches(BATCH_ROWS, columns=columns):
                    yield from batch.to_pylist()
                    number += batch.num_rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise from_os_error(error, f"reading {file}") from error
                reason = str(error).split("\n")[0][:200]
                self.quarantined[file] = f"after {number} rows: {reason}" if number else reason


def parse_time(text: str) -> datetime:
    """An ISO 8601 time, UTC where it names no zone. Raises: ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def exists(uri: str) -> bool:
    """Whether there is a file or folder, something that a glob names, or anything under a store's prefix.

    Raises: ServiceError if the store does not answer, ConfigError what it refuses.
    """
    if not _is_remote(uri):
        path = _path(uri)
        with _disk(uri):
            return path.exists() or bool(glob.glob(str(path)))
    if uri.startswith(s3.SCHEME) and s3.listed(uri):
        return True
    try:
        return bool(list_files(uri))
    except DataError:
        return False


def _other_schema(found: Any, kind: type[Record]) -> str:
    """Why a file does not hold rows of `kind`, or ''."""
    named = (found.metadata or {}).get(b"schema", kind.SCHEMA.encode()).decode(errors="replace")
    if named not in (kind.SCHEMA, *_READ_AS_WELL.get(kind.SCHEMA, ())):
        return f"holds {named}, expected {kind.SCHEMA}"
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in found.names]
    unknown = [name for name in found.names if name not in kind.model_fields]
    faults = [f"no column {name}" for name in missing] + [f"unknown column {name}" for name in unknown]
    return f"not {kind.SCHEMA}: {', '.join(faults)}" if faults else ""


def _files(folder: str, first: date | None, last: date | None) -> list[str] | None:
    """The visible files of the days [first, last] of a folder, and those beside its days, by name; None if it has no
    days."""
    names = _names(folder)
    days = {name: found[1] for name in names if (found := _DAY.match(name))}
    if not days:
        return None
    wanted = [
        name
        for name in names
        if name != f"{LABELS}/"
        and (
            name not in days
            or (first is None or days[name] >= first.isoformat())
            and (last is None or days[name] <= last.isoformat())
        )
    ]
    found = [file for name in wanted for file in _under(folder, name)]
    return sorted(file for file in found if not Path(file).name.startswith("."))


def _names(folder: str) -> list[str]:
    """Names next under a folder, those of folders with a / at their end; none where there is no such folder."""
    if _is_remote(folder):
        return s3.listed(folder) if folder.startswith(s3.SCHEME) else []
    with _disk(folder):
        there = _path(folder)
        return [f"{one.name}/" if one.is_dir() else one.name for one in there.iterdir()] if there.is_dir() else []


def _under(folder: str, name: str) -> list[str]:
    """The file `name` of a folder, or all those of the folder `name` in it."""
    if not name.endswith("/"):
        return [f"{folder}/{name}"]
    if _is_remote(folder):
        return [f"{folder}/{name}{file}" for file in s3.names(f"{folder}/{name}")]
    with _disk(folder):
        return [str(file) for file in (_path(folder) / name).rglob("*") if file.is_file()]


def _write(uri: str, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    if _is_remote(uri):
        s3.put_bytes(uri, data)
        return
    target = _path(uri)
    temporary = target.with_name(f".{target.name}")
    with _disk(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)


@contextlib.contextmanager
def _disk(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"using the prediction log {uri}") from error


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).expanduser()
