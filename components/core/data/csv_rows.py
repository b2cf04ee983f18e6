"""Rows of a table in text."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import IO

from bloomery.components.core.data.raw_rows import (
    MAX_ROW_BYTES,
    RAW_CHARACTERS,
    Line,
    RawRow,
    beginning,
    blocks_of,
    is_mostly_nul,
    lines_of,
)

DELIMITERS = ";\t|,"
"""What may separate the cells of a table instead of a comma."""


class _RecordLines:
    """Lines for a csv.reader, together with those of its unfinished record: they can be read again."""

    def __init__(self, lines: Iterator[Line], end: bytes) -> None:
        self.lines_of, self._end = lines, end.decode()
        self._again: deque[Line] = deque()
        self.start_record()

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self.lines_of)
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
        self.record: list[Line] = []
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
    blocks = blocks_of(stream)
    first = next(blocks, b"")
    end = b"\n" if b"\n" in first else b"\r"
    separator = _SEPARATOR.fullmatch(first.partition(end)[0])
    delimiter = delimiter or (separator[1].decode("utf-8", "replace") if separator else usual)
    lines = _RecordLines(lines_of(chain([first], blocks), end), end)
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
            yield RawRow(line.number, None, "broken_csv" if line.is_whole else "too_large", beginning(line.data))
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
        problem = "" if lines.is_utf8 and not is_mostly_nul(text) else "bad_encoding"
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
