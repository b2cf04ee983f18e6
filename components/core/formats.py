"""What a stream of bytes holds, row by row: one reader a format, a reason for each unreadable row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

RAW_CHARACTERS = 500
"""How much of a row is kept for the reject that may come of it."""


class RawRow(NamedTuple):
    """One row as it was found."""

    line: int
    """1-based line of a text file, or index of a JSON or Parquet row; 0 where the row is the whole file."""
    value: dict[str, Any] | None
    """The fields; None where there is a problem."""
    problem: str
    """'' or why the row cannot be read: `broken_json`, `wrong_type`, `bad_encoding`, `wrong_columns`,
    `broken_file`, `unknown_format`."""
    raw: str
    """Its first 500 characters."""
    uri: str = ""
    """The file it stands in."""


def _read_jsonl(stream: IO[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _json_row(number, line)


def _json_row(number: int, line: bytes) -> RawRow:
    raw = line[: 4 * RAW_CHARACTERS].decode("utf-8", "replace").strip()[:RAW_CHARACTERS]
    try:
        value = _parse_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        return RawRow(number, None, "bad_encoding", raw)
    except (ValueError, RecursionError):
        return RawRow(number, None, "broken_json", raw)
    return _value_row(number, value, raw, may_hold_surrogates=b"\\u" in line)


def _value_row(number: int, value: Any, raw: str, *, may_hold_surrogates: bool) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(number, None, "wrong_type", raw)
    if may_hold_surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair, written as \ud83d: JSON allows it, no UTF-8 text can hold it.
            return RawRow(number, None, "bad_encoding", raw)
    return RawRow(number, value, "", raw)


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of an array, of one object, or of JSON lines in a file that is merely named .json."""
    data = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return
    try:
        value = _parse_json(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _read_jsonl(io.BytesIO(data))
        else:
            yield _json_row(0, data)
        return
    escaped = b"\\u" in data
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        raw = json.dumps(item, ensure_ascii=escaped)[:RAW_CHARACTERS]
        yield _value_row(number, item, raw, may_hold_surrogates=escaped)


def _read_csv(stream: IO[bytes], delimiter: str = ",") -> Iterator[RawRow]:
    # The csv module refuses cells above 128 KiB unless told otherwise; documents in a column are longer.
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter)
    header: list[str] | None = None
    start = 1
    for cells in reader:
        line, start = start, reader.line_num + 1
        if not cells:
            continue
        joined = delimiter.join(cells)
        is_utf8 = joined.isascii() or not any("\udc80" <= character <= "\udcff" for character in joined)
        raw = joined[:RAW_CHARACTERS].encode("utf-8", "replace").decode()
        if header is None:
            header = cells
            if not is_utf8 or len(set(cells)) < len(cells):
                # Without the names of the columns no row of the file can be read.
                yield RawRow(line, None, "wrong_columns" if is_utf8 else "bad_encoding", raw)
                return
        elif not is_utf8:
            yield RawRow(line, None, "bad_encoding", raw)
        elif len(cells) != len(header):
            yield RawRow(line, None, "wrong_columns", raw)
        else:
            yield RawRow(line, dict(zip(header, cells, strict=True)), "", raw)


def _read_tsv(stream: IO[bytes]) -> Iterator[RawRow]:
    return _read_csv(stream, "\t")


def _read_parquet(stream: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
        number = 0
        for batch in file.iter_batches(batch_size=1000):
            for index in range(batch.num_rows):
                number += 1
                yield _arrow_row(number, batch.slice(index, 1))
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _arrow_row(number: int, row: Any) -> RawRow:
    try:
        value = row.to_pylist()[0]
    except UnicodeDecodeError:
        return RawRow(number, None, "bad_encoding", "")
    return RawRow(number, value, "", json.dumps(value, ensure_ascii=False, default=str)[:RAW_CHARACTERS])


def _read_text(stream: IO[bytes]) -> Iterator[RawRow]:
    data = stream.read()
    raw = data[: 4 * RAW_CHARACTERS].decode("utf-8", "replace")[:RAW_CHARACTERS]
    try:
        yield RawRow(0, {"text": data.decode("utf-8-sig")}, "", raw)
    except UnicodeDecodeError:
        yield RawRow(0, None, "bad_encoding", raw)


READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "text": _read_text,
    "markdown": _read_text,
    "html": _read_text,
}
"""Reader by format."""
