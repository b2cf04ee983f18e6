"""What a stream of bytes holds, row by row: one reader a format, a reason for each unreadable row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import IO

from bloomery.components.core.data.csv_rows import read_csv
from bloomery.components.core.data.encodings import declared
from bloomery.components.core.data.json_rows import read_json, read_jsonl
from bloomery.components.core.data.parquet_rows import read_parquet
from bloomery.components.core.data.raw_rows import (
    RawRow,
    beginning,
    is_mostly_nul,
    read_whole,
)


def _read_text(stream: IO[bytes], *, is_page: bool = False) -> Iterator[RawRow]:
    data = read_whole(stream, "it would be one document: split it")
    text = _decoded(data, "utf-8-sig")
    if text is None and is_page and (encoding := declared(data)):
        text = _decoded(data, encoding)
    if text is None:
        text = "\0"
    if is_mostly_nul(text):
        yield RawRow(0, None, "bad_encoding", beginning(data))
    else:
        yield RawRow(0, {"text": text}, "", beginning(data))


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


READERS = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": partial(read_csv, usual="\t"),
    "parquet": read_parquet,
    "text": _read_text,
    "markdown": _read_text,
    "html": partial(_read_text, is_page=True),
}
"""Reader by format."""
