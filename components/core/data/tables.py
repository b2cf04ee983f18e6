"""Rows from outside: what each line of a file holds, and which rows a source means.

Nothing in a file can stop a run. A broken line, a wrong type, bytes that are not UTF-8, a line of gigabytes or a
truncated archive become a `RawRow` with a `problem`, so that the step that reads them counts and shows them.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import heapq
import io
import json
import logging
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from bloomery.components.core.config import Config, LocalPath
from bloomery.components.core.data import render
from bloomery.components.core.data.encodings import Utf8, codec
from bloomery.components.core.data.files import is_remote, list_files, opened
from bloomery.components.core.data.formats import READERS
from bloomery.components.core.data.raw_rows import RAW_CHARACTERS, RawRow, TooLarge, read_whole
from bloomery.components.core.errors import DataError, from_os_error

logger = logging.getLogger(__name__)

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
}
"""Format by suffix, after the suffix of the compression is taken off."""

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")

_CORRUPT = (EOFError, zlib.error, lzma.LZMAError)


class RowSource(Config):
    """Rows of a file, folder or URI, and which of them are meant."""

    path: LocalPath
    """File, folder, glob or URI: JSONL, JSON, CSV, TSV, Parquet, text, Markdown or HTML, also compressed."""
    encoding: str = ""
    """Encoding of the text files, such as `cp949` or `utf-16-le`; empty: UTF-8. A byte order mark rules over it; a page
    that declares another and is no UTF-8 is read as it says."""
    delimiter: str = ""
    """Character between the cells of CSV and TSV files, such as `;`; empty: a comma, in TSV a tab, or what a first line
    `sep=;` says."""
    where: dict[str, Any] = {}
    """Keep the rows whose fields have these values; `meta.lang` reaches into an object."""
    share: tuple[float, float] = (0.0, 1.0)
    """Keep the rows whose content hash falls in this part of [0, 1): disjoint shares are disjoint splits."""
    limit: int | None = Field(default=None, gt=0)
    """Keep at most this many rows, the first by content hash; none: all."""

    @field_validator("path")
    @classmethod
    def _leads_somewhere(cls, value: str, info: ValidationInfo) -> str:
        if not value and (info.context or {}).get("folder"):  # in a recipe
            raise ValueError("empty; expected a file, a folder, a glob or a URI")
        return value

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, encoding: str) -> str:
        return encoding and (codec(encoding) or "utf-8")

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, delimiter: str) -> str:
        if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
            raise ValueError(f'{delimiter!r}: expected one character, such as ";", "|" or "\\t"')
        return delimiter

    @field_validator("share")
    @classmethod
    def _is_part_of_one(cls, share: tuple[float, float]) -> tuple[float, float]:
        low, high = share
        if not 0 <= low < high <= 1:
            raise ValueError("expected [low, high] with 0 <= low < high <= 1, such as [0.0, 0.9]")
        return share


class SourceConfig(RowSource):
    """A source of documents."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Short name that documents, rejects and metrics are counted by."""
    text: str = "{text}"
    """Template of a document over the fields of a row, such as `{title}\\n\\n{body}`; `{meta.title}` reaches into an
    object, `{{` is a brace."""
    time: str = ""
    """Field that says when a row was written, for `survivor: [newest]` of dedup; ISO 8601 sorts rightly."""
    general: bool = False
    """True for general text, which continued pre-training replays against forgetting; False: the domain."""

    @field_validator("text")
    @classmethod
    def _is_template(cls, text: str) -> str:
        return render.check(text)


def format_of(uri: str) -> str:
    """The format of a file by its name, such as `jsonl` for `a.jsonl.gz`; '' where the name tells none."""
    return FORMATS.get(_suffix(uri)[0], "")


def read_source(
    source: RowSource, files: Iterable[str], where: str, templates: Iterable[str] = ()
) -> Iterator[RawRow]:
    """The rows of `files` that the source means, in order.

    Raises: DataError at their end, naming `where` and the file, if no row can be read, or none has a field of the
    `templates`.
    """
    counts: Counter[str] = Counter()
    odd: list[RawRow] = []

    def counted(row: RawRow) -> RawRow:
        counts[row.problem] += 1
        if row.problem and (not odd or (row.hint and not odd[-1].hint)):
            odd.append(row)
        return row

    rows = map(counted, chain.from_iterable(read_rows(file, source) for file in files))
    yield from render.checked(select(rows, source), templates, where)
    if odd and not counts[""]:
        raise DataError(f"{where}: no row can be read ({_told(counts)}): {_found(odd[-1])}")
    if odd and odd[-1].hint:
        problem = odd[-1].problem
        logger.warning("%s: %d of %d rows: %s", where, counts[problem], counts.total(), _found(odd[-1]))


def _found(row: RawRow) -> str:
    """A problem, its place and what to do about it."""
    place = f"{row.uri} row {row.line}" if row.line else row.uri
    return f"{row.problem} at {place}" + (f"; {row.hint}" if row.hint else "")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def rows_of(source: RowSource) -> Iterator[RawRow]:
    """The rows that `source` means, of all its files in order; what is wrong with them is left to the caller."""
    return select(chain.from_iterable(read_rows(uri, source) for uri in list_files(source.path)), source)


def read_rows(uri: str, source: RowSource | None = None) -> Iterator[RawRow]:
    """Every row of a file in order; JSON lines end at "\n" alone, blank lines are no rows, text is UTF-8 unless
    the file's mark, the `source` or the page itself says otherwise.

    Raises: DataError if the file is not there or may not be read, ServiceError if a store does not answer.
    """
    kind, compression = format_of(uri), _suffix(uri)[1]
    if not kind:
        yield RawRow(0, None, "unknown_format", Path(uri).name[:RAW_CHARACTERS], uri)
        return
    with opened(uri) as stream:
        last = 0
        try:
            content = _decompressed(stream, compression)
            text: Utf8 | None = None
            if kind != "parquet":
                content = text = Utf8(content, codec(source.encoding or "utf-8") if source else "")  # type: ignore
            elif compression:
                # Its reader goes back and forth, which a decompressor can only do from the start each time.
                content = io.BytesIO(read_whole(content, "decompress the file: Parquet is compressed inside"))
            read = READERS[kind]
            if source and source.delimiter and kind in ("csv", "tsv"):
                read = partial(read, delimiter=source.delimiter)
            for row in read(content):
                last = row.line
                hint = row.hint
                if row.problem == "bad_encoding" and text is not None:
                    hint = text.hint()
                yield RawRow(last, row.value, row.problem, row.raw, uri, hint)
        except TooLarge as error:
            yield RawRow(0, None, "too_large", str(error), uri)
        except (*_CORRUPT, OSError) as error:
            # A decompressor's and Arrow's complaint about content carries no errno; one of the system does.
            if isinstance(error, OSError) and error.errno is not None:
                raise from_os_error(error, f"reading {uri}") from error
            yield RawRow(last + 1 if last else 0, None, "broken_file", str(error)[:RAW_CHARACTERS], uri)


def select(rows: Iterable[RawRow], source: RowSource) -> Iterator[RawRow]:
    """The rows that `where`, `share` and `limit` mean, in their order; rows with a problem always pass."""
    low, high = source.share
    wanted = {field: _as_text(value) for field, value in source.where.items()}

    def chosen() -> Iterator[tuple[float, int, RawRow]]:
        for index, row in enumerate(rows):
            if row.value is None:
                yield -1.0, index, row
            elif all(_as_text(render.value(field, row.value)) == text for field, text in wanted.items()):
                position = content_position(row.value)
                if low <= position < high:
                    yield position, index, row

    if source.limit is None:
        yield from (row for _, _, row in chosen())
        return
    problems: list[tuple[int, RawRow]] = []
    good = _set_problems_aside(chosen(), problems)
    first = [(index, row) for _, index, row in heapq.nsmallest(source.limit, good, key=lambda item: item[:2])]
    yield from (row for _, row in sorted(first + problems, key=lambda item: item[0]))


def content_position(value: dict[str, Any]) -> float:
    """Where a row stands in [0, 1) by the hash of its canonical JSON, whatever its file and order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    # 53 bits, the precision of a float: a quotient of 64 bits could be rounded up to 1.0, in no share at all.
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53


def _set_problems_aside(
    rows: Iterable[tuple[float, int, RawRow]], problems: list[tuple[int, RawRow]]
) -> Iterator[tuple[float, int, RawRow]]:
    for item in rows:
        if item[2].value is None:
            problems.append(item[1:])
        else:
            yield item


def _as_text(value: Any) -> str:
    """A field value for comparison: a CSV cell holds `3` where a recipe says 3, and kfp turns 3 into 3.0."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _suffix(uri: str) -> tuple[str, str]:
    """(suffix, suffix of the compression or '') of a file name, in lower case."""
    name = Path(urlsplit(uri).path if is_remote(uri) else uri).name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def _decompressed(stream: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[return-value]  # by itself it takes that of a copy
    if compression == ".xz":
        return lzma.LZMAFile(stream)  # type: ignore[return-value]
    if compression == ".bz2":
        return bz2.BZ2File(stream)  # type: ignore[return-value]
    if compression == ".zst":
        import pyarrow as pa

        # Arrow reports a truncated frame; the reader of `zstandard` ends there as if the file were whole.
        frames = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return io.BufferedReader(frames)  # type: ignore
    return stream
