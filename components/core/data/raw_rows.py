"""A row as it was found, and the streams of bytes that rows are read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import IO, Any, NamedTuple

RAW_CHARACTERS = 500
"""How much of a row is kept for the reject that may come of it."""

MAX_ROW_BYTES = 64 * 2**20
"""Longest row that is read, after decompression: 64 MiB, twenty long novels. What is longer is `too_large`: a line
of a text format, a row of Parquet, and the whole of a file that is read at once (an array in JSON, text, Markdown,
HTML, compressed Parquet). It bounds the memory that a file without line ends or a decompression bomb takes."""

NUL_SHARE = 0.25
"""Text with a larger share of NUL characters was UTF-16 or UTF-32 once; a few NULs are left to the repair of text."""

BLOCK_BYTES = 2**20


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


class Line(NamedTuple):
    number: int
    data: bytes
    """Without its end; of a line above MAX_ROW_BYTES, its beginning."""
    is_whole: bool


def blocks_of(stream: IO[bytes]) -> Iterator[bytes]:
    # read1 hands out what a truncated archive still gives before it complains; read would lose it.
    return iter(partial(stream.read1, BLOCK_BYTES), b"")  # type: ignore[attr-defined]


def lines_of(blocks: Iterable[bytes], end: bytes = b"\n") -> Iterator[Line]:
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
        yield Line(number, bytes(start), is_whole)
        *middle, last = others
        for line in middle:
            number += 1
            is_whole = len(line) <= MAX_ROW_BYTES
            yield Line(number, line if is_whole else line[: 4 * RAW_CHARACTERS], is_whole)
        number, start, is_whole = number + 1, bytearray(last), len(last) <= MAX_ROW_BYTES
    if start:
        yield Line(number, bytes(start), is_whole)


def read_whole(stream: IO[bytes], advice: str) -> bytes:
    """All of a stream. Raises: TooLarge with `advice`."""
    data = stream.read(MAX_ROW_BYTES + 1)
    refuse_too_large(data, advice)
    return data


def refuse_too_large(data: bytes, advice: str) -> None:
    if len(data) > MAX_ROW_BYTES:
        raise TooLarge(f"longer than {MAX_ROW_BYTES:,} bytes, the most that is read at once; {advice}")


def beginning(data: bytes) -> str:
    return data[: 4 * RAW_CHARACTERS].decode("utf-8", "replace")[:RAW_CHARACTERS]


def is_mostly_nul(text: str) -> bool:
    return text.count("\0") > NUL_SHARE * len(text)
