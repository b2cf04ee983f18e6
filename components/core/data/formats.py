"""What a stream of bytes holds, row by row: one reader a format, a reason for each unreadable row."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import IO, Any, NamedTuple

from bloomery.components.core.data.encodings import declared

RAW_CHARACTERS = 500
"""How much of a row is kept for the reject that may come of it."""

MAX_ROW_BYTES = 64 * 2**20
"""Longest row that is read, after decompression: 64 MiB, twenty long novels. What is longer is `too_large`: a line
of a text format, a row of Parquet, and the whole of a file that is read at once (an array in JSON, text, Markdown,
HTML, compressed Parquet). It bounds the memory that a file without line ends or a decompression bomb takes."""

MAX_DEPTH = 128
"""Deepest nesting of JSON that is read, as in Rust's serde_json; Python's own limit is a matter of the stack."""

NUL_SHARE = 0.25
"""Text with a larger share of NUL characters was UTF-16 or UTF-32 once; a few NULs are left to the repair of text."""

DELIMITERS = ";\t|,"
"""What may separate the cells of a table instead of a comma."""

_BLOCK_BYTES = 2**20
_MAX_BATCH_ROWS = 256


class RawRow(NamedTuple):
    """One row as it was found."""

    line: int
    """1-based line of a text file, or index of a JSON or Parquet row; 0 where the row is the whole file."""
    value: dict[str, Any] | None
    """The fields; None where there is a problem."""
    problem: str
    """'' or why the row cannot be read: `broken_json`, `duplicate_keys`, `wrong_type`, `bad_encoding`, `broken_csv`,
    `wrong_columns`, `too_large`, `broken_file`, `unknown_format`."""
    raw: str
    """Its first 500 characters; of a file that cannot be read as a whole, what is wrong with it."""
    uri: str = ""
    """The file it stands in."""
    hint: str = ""
    """What the file looks like and which key says so, where it is no UTF-8 or other characters separate its cells."""


class TooLarge(Exception):
    """What has to be read at once is longer than MAX_ROW_BYTES; the message says what to do."""


class _DuplicateKeys(ValueError):
    """Of the values of a key only one would survive."""


class _Line(NamedTuple):
    number: int
    data: bytes
    """Without its end; of a line above MAX_ROW_BYTES, its beginning."""
    is_whole: bool


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    # read1 hands out what a truncated archive still gives before it complains; read would lose it.
    return iter(partial(stream.read1, _BLOCK_BYTES), b"")  # type: ignore[attr-defined]


def _lines(blocks: Iterable[bytes], end: bytes = b"\n") -> Iterator[_Line]:
    number, start, is_whole = 1, bytearray(), True
    for block in blocks:
        first, *others = block.split(end)
        if is_whole:
            start += first
            is_whole = len(start) <= MAX_ROW_BYTES
            if not is_whole:
                del start[4 * RAW_CHARACTERS :]
        if not others:
            continue
        yield _Line(number, bytes(start), is_whole)
        *middle, last = others
        for line in middle:
            number += 1
            is_whole = len(line) <= MAX_ROW_BYTES
            yield _Line(number, line if is_whole else line[: 4 * RAW_CHARACTERS], is_whole)
        number, start, is_whole = number + 1, bytearray(last), len(last) <= MAX_ROW_BYTES
    if start:
        yield _Line(number, bytes(start), is_whole)


def read_whole(stream: IO[bytes], advice: str) -> bytes:
    """All of a stream. Raises: TooLarge with `advice`."""
    data = stream.read(MAX_ROW_BYTES + 1)
    _refuse_too_large(data, advice)
    return data


def _refuse_too_large(data: bytes, advice: str) -> None:
    if len(data) > MAX_ROW_BYTES:
        raise TooLarge(f"longer than {MAX_ROW_BYTES:,} bytes, the most that is read at once; {advice}")


def _beginning(data: bytes) -> str:
    return data[: 4 * RAW_CHARACTERS].decode("utf-8", "replace")[:RAW_CHARACTERS]


def _is_mostly_nul(text: str) -> bool:
    return text.count("\0") > NUL_SHARE * len(text)


def _read_jsonl(stream: IO[bytes]) -> Iterator[RawRow]:
    return _json_lines(_blocks(stream))


def _json_lines(blocks: Iterable[bytes]) -> Iterator[RawRow]:
    for number, data, is_whole in _lines(blocks):
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not is_whole:
            yield RawRow(number, None, "too_large", _beginning(data))
        elif data.strip():
            yield _json_row(number, data)


def _is_json_lines(data: bytes) -> bool:
    """Whether the first line is an object by itself, and others follow."""
    first, _, others = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not first.startswith(b"{") or not others.strip():
        return False
    return _parse_json(first)[1] in ("", "duplicate_keys")


def _json_row(number: int, data: bytes) -> RawRow:
    raw = _beginning(data).strip()
    value, problem = _parse_json(data)
    return RawRow(number, None, problem, raw) if problem else _value_row(number, value, raw, _is_suspect(data))


def _parse_json(data: bytes) -> tuple[Any, str]:
    """(value, '') of a JSON text, or (None, problem)."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None, "bad_encoding"
    try:
        return _decode(text), ""
    except _DuplicateKeys:
        return None, "duplicate_keys"
    except (ValueError, RecursionError):
        return None, "bad_encoding" if _is_mostly_nul(text) else "broken_json"


def _different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _DuplicateKeys
    return value


# One decoder for all rows: json.loads would build one a row, which costs more than looking at the keys. NaN and
# Infinity, which pandas and Python write, are read: where a template reads the field, the row is a reject.
_decode = json.JSONDecoder(object_pairs_hook=_different_keys).decode


class _Duplicated(dict[str, Any]):
    """An object that named a key twice."""


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Duplicated(value)


_decode_marking = json.JSONDecoder(object_pairs_hook=_mark_duplicates).decode


def _is_suspect(data: bytes) -> bool:
    """Whether JSON may hold what is no text, or be too deep: neither goes without an escape, or many brackets."""
    return b"\\u" in data or data.count(b"[") + data.count(b"{") > MAX_DEPTH


def _value_row(number: int, value: Any, raw: str, is_suspect: bool) -> RawRow:
    problem = ""
    if not isinstance(value, dict):
        problem = "wrong_type"
    elif is_suspect and is_too_deep(value):
        problem = "broken_json"
    elif is_suspect and not _is_text(value):
        problem = "bad_encoding"
    return RawRow(number, None if problem else value, problem, raw)


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper in it than is read."""
    return any(depth >= MAX_DEPTH for depth, _ in enumerate(_levels(value)))


def _levels(value: Any) -> Iterator[list[Any]]:
    """The lists and objects of a value by their depth."""
    level = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        yield level
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]


def _is_text(value: dict[str, Any]) -> bool:
    """Whether a row holds text that UTF-8 can hold, and not the NULs of another encoding."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, written as \ud83d: JSON allows it, no UTF-8 text can hold it.
        return False
    num_nuls = text.count("\\u0000")
    return num_nuls <= NUL_SHARE * (len(text) - 5 * num_nuls)


def _shown(value: Any, *, ascii_only: bool = False) -> str:
    """The beginning of a row that was not written as a line, without a copy of its long texts."""
    if isinstance(value, dict):
        value = {k: v[:RAW_CHARACTERS] if isinstance(v, str | bytes | list) else v for k, v in value.items()}
    try:
        return json.dumps(value, ensure_ascii=ascii_only, default=str)[:RAW_CHARACTERS]
    except RecursionError:
        return ""


def _read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of an array, of one object, or of JSON lines in a file that is merely named .json."""
    data = stream.read(MAX_ROW_BYTES + 1)
    if _is_json_lines(data):
        yield from _json_lines(chain([data], _blocks(stream)))
        return
    _refuse_too_large(data, "write the rows as JSON lines (.jsonl), which are read one by one")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return
    value, problem = _parse_json(data)
    if is_marked := problem == "duplicate_keys":
        # Which rows of an array have them, a second reading tells.
        value = _decode_marking(data.decode("utf-8"))
    elif problem:
        yield RawRow(0, None, problem, _beginning(data).strip())
        return
    is_suspect = _is_suspect(data)
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        raw = _shown(item, ascii_only=is_suspect)
        if is_marked and any(isinstance(part, _Duplicated) for level in _levels(item) for part in level):
            yield RawRow(number, None, "duplicate_keys", raw)
        else:
            yield _value_row(number, item, raw, is_suspect)


class _RecordLines:
    """Lines for a csv.reader, together with those of its unfinished record: they can be read again."""

    def __init__(self, lines: Iterator[_Line], end: bytes) -> None:
        self._lines, self._end = lines, end.decode()
        self._again: deque[_Line] = deque()
        self.start_record()

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.record.append(line)
        self._num_bytes += len(line.data)
        if not line.is_whole or self._num_bytes > MAX_ROW_BYTES:
            raise csv.Error("too large")
        data = line.data.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.data
        try:
            return data.decode("utf-8") + self._end
        except UnicodeDecodeError:
            self.is_utf8 = False
            return data.decode("utf-8", "replace") + self._end

    def start_record(self) -> None:
        self.record: list[_Line] = []
        self.is_utf8 = True
        self._num_bytes: int = 0

    def read_again(self) -> None:
        """Take back every line of the record but its first."""
        self._again.extendleft(reversed(self.record[1:]))
        self.start_record()


# Excel's own line before the header.
_SEPARATOR = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([^\n\r"])"?\r?')


def read_csv(stream: IO[bytes], delimiter: str = "", usual: str = ",") -> Iterator[RawRow]:
    """Rows of a table with a header. `delimiter` rules, else a line `sep=;` before the header, else the `usual` one."""
    # The csv module refuses cells above 128 KiB unless told otherwise; documents in a column are longer.
    csv.field_size_limit(2**31 - 1)
    blocks = _blocks(stream)
    first = next(blocks, b"")
    end = b"\n" if b"\n" in first else b"\r"
    separator = _SEPARATOR.fullmatch(first.partition(end)[0])
    delimiter = delimiter or (separator[1].decode("utf-8", "replace") if separator else usual)
    lines = _RecordLines(_lines(chain([first], blocks), end), end)
    # A lenient reader takes the rows after an unclosed quote for the text of a cell, and says nothing.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    hint = ""
    while True:
        lines.start_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # The quote may never have been meant to close: what it swallowed is read again as rows of its own.
            line = lines.record[0]
            lines.read_again()
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield RawRow(line.number, None, "broken_csv" if line.is_whole else "too_large", _beginning(line.data))
            if header is None:
                return
            continue
        if not cells:
            continue
        number = lines.record[0].number
        if separator and number == 1:
            continue
        text = delimiter.join(cells)
        raw = text[:RAW_CHARACTERS]
        problem = "" if lines.is_utf8 and not _is_mostly_nul(text) else "bad_encoding"
        if header is None:
            header = cells
            hint = _delimiter_hint(text, delimiter)
            if problem or len(set(cells)) < len(cells):
                # Without the names of the columns no row of the file can be read.
                yield RawRow(number, None, problem or "wrong_columns", raw)
                return
        elif problem or len(cells) != len(header):
            yield RawRow(number, None, problem or "wrong_columns", raw, "", hint)
        else:
            yield RawRow(number, dict(zip(header, cells, strict=True)), "", raw, "", hint)


def _delimiter_hint(header: str, delimiter: str) -> str:
    """What to do where another character separates more names of the header than `delimiter` does."""
    most = max(DELIMITERS, key=header.count)
    if header.count(most) <= header.count(delimiter):
        return ""
    return f"the header looks separated by {most!r}: set `delimiter: {json.dumps(most)}`"


def _read_parquet(stream: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a column is read page by page, without one a row group at once.
        file = pq.ParquetFile(stream, buffer_size=_BLOCK_BYTES)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            yield RawRow(0, None, "wrong_columns", ", ".join(names)[:RAW_CHARACTERS])
            return
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            fitting = MAX_ROW_BYTES * size.num_rows // max(1, size.total_byte_size)
            batch_rows = max(1, min(_MAX_BATCH_ROWS, fitting))
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
                yield from _arrow_rows(number + 1, batch)
                number += batch.num_rows
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _arrow_rows(number: int, batch: Any) -> Iterator[RawRow]:
    try:
        values = batch.to_pylist() if batch.nbytes <= MAX_ROW_BYTES else None
    except (ValueError, OverflowError):
        values = None
    if values is None:
        return (_arrow_row(number + index, batch.slice(index, 1)) for index in range(batch.num_rows))
    return (_arrow_value(number + index, value) for index, value in enumerate(values))


def _arrow_row(number: int, row: Any) -> RawRow:
    if row.nbytes > MAX_ROW_BYTES:
        return RawRow(number, None, "too_large", "")
    try:
        return _arrow_value(number, row.to_pylist()[0])
    except UnicodeDecodeError:
        return RawRow(number, None, "bad_encoding", "")
    except (ValueError, OverflowError) as error:
        # Values that Python has no type for, such as a time after the year 9999.
        return RawRow(number, None, "wrong_type", str(error)[:RAW_CHARACTERS])


def _arrow_value(number: int, value: dict[str, Any]) -> RawRow:
    value = {field: _written(cell) for field, cell in value.items()}
    holds_nul = any("\0" in cell for cell in value.values() if isinstance(cell, str))
    return _value_row(number, value, _shown(value), holds_nul)


def _written(cell: Any) -> Any:
    """A cell without the nulls that the rows' structs, which share their fields, have where nothing was written."""
    if isinstance(cell, dict):
        return {name: _written(value) for name, value in cell.items() if value is not None}
    if isinstance(cell, list) and cell and isinstance(cell[0], dict | list):
        return [_written(item) for item in cell]
    return cell


def _read_text(stream: IO[bytes], *, is_page: bool = False) -> Iterator[RawRow]:
    data = read_whole(stream, "it would be one document: split it")
    text = _decoded(data, "utf-8-sig")
    if text is None and is_page and (encoding := declared(data)):
        text = _decoded(data, encoding)
    if text is None:
        text = "\0"
    if _is_mostly_nul(text):
        yield RawRow(0, None, "bad_encoding", _beginning(data))
    else:
        yield RawRow(0, {"text": text}, "", _beginning(data))


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": read_csv,
    "tsv": partial(read_csv, usual="\t"),
    "parquet": _read_parquet,
    "text": _read_text,
    "markdown": _read_text,
    "html": partial(_read_text, is_page=True),
}
"""Reader by format."""
