"""Rows of JSON: lines, an array, an object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any

from bloomery.components.core.data.raw_rows import (
    MAX_ROW_BYTES,
    NUL_SHARE,
    RAW_CHARACTERS,
    RawRow,
    beginning,
    blocks_of,
    is_mostly_nul,
    lines_of,
    refuse_too_large,
)

MAX_DEPTH = 128
"""Deepest nesting of JSON that is read, as in Rust's serde_json; Python's own limit is a matter of the stack."""


class _DuplicateKeys(ValueError):
    """Of the values of a key only one would survive."""


def read_jsonl(stream: IO[bytes]) -> Iterator[RawRow]:
    return _json_lines(blocks_of(stream))


def _json_lines(blocks: Iterable[bytes]) -> Iterator[RawRow]:
    for number, data, is_whole in lines_of(blocks):
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not is_whole:
            yield RawRow(number, None, "too_large", beginning(data))
        elif data.strip():
            yield _json_row(number, data)


def _is_json_lines(data: bytes) -> bool:
    """Whether the first line is an object by itself, and others follow."""
    first, _, others = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not first.startswith(b"{") or not others.strip():
        return False
    return _parse_json(first)[1] in ("", "duplicate_keys")


def _json_row(number: int, data: bytes) -> RawRow:
    raw = beginning(data).strip()
    value, problem = _parse_json(data)
    return RawRow(number, None, problem, raw) if problem else value_row(number, value, raw, _is_suspect(data))


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
        return None, "bad_encoding" if is_mostly_nul(text) else "broken_json"


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


def value_row(number: int, value: Any, raw: str, is_suspect: bool) -> RawRow:
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


def shown(value: Any, *, ascii_only: bool = False) -> str:
    """The beginning of a row that was not written as a line, without a copy of its long texts."""
    if isinstance(value, dict):
        value = {k: v[:RAW_CHARACTERS] if isinstance(v, str | bytes | list) else v for k, v in value.items()}
    try:
        return json.dumps(value, ensure_ascii=ascii_only, default=str)[:RAW_CHARACTERS]
    except RecursionError:
        return ""


def read_json(stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of an array, of one object, or of JSON lines in a file that is merely named .json."""
    data = stream.read(MAX_ROW_BYTES + 1)
    if _is_json_lines(data):
        yield from _json_lines(chain([data], blocks_of(stream)))
        return
    refuse_too_large(data, "write the rows as JSON lines (.jsonl), which are read one by one")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return
    value, problem = _parse_json(data)
    if is_marked := problem == "duplicate_keys":
        # Which rows of an array have them, a second reading tells.
        value = _decode_marking(data.decode("utf-8"))
    elif problem:
        yield RawRow(0, None, problem, beginning(data).strip())
        return
    is_suspect = _is_suspect(data)
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        raw = shown(item, ascii_only=is_suspect)
        if is_marked and any(isinstance(part, _Duplicated) for level in _levels(item) for part in level):
            yield RawRow(number, None, "duplicate_keys", raw)
        else:
            yield value_row(number, item, raw, is_suspect)
