"""Templates over the fields of a row: one strict language for documents, questions and answers.

`{field}` stands for a field of the row, whatever its name (`{Question Text}`); dots lead into objects and lists
(`{answers.text.0}`); `{{` and `}}` are braces. A field is substituted or refused: text as it is, a number and a boolean
as JSON writes them, a null as nothing. A line of a template on which nothing but fields stand, and all of them are
empty, goes with its blank lines, so that an empty field leaves no gap.
"""

from __future__ import annotations

import datetime
import decimal
import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.errors import DataError

MAX_NAMES = 20
"""Fields that a message names at most."""
_KNOWN_ROWS = 100
"""Rows whose fields a message can name."""

_PART = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")
_FORMAT = re.compile(r"(![rsa](:.*)?|:[^:]*)$")
_MISSING = object()


class Filled(NamedTuple):
    """What a template makes of a row."""

    text: str
    """'' where there is a problem."""
    problem: str = ""
    """'' or why the row does not fit: `missing_field`; `wrong_type`, a list, an object or bytes; `not_finite`, NaN or
    infinity."""
    detail: str = ""
    """The field, and what would work."""


class Template:
    """A template, parsed."""

    def __init__(self, text: str) -> None:
        """Raises: ValueError for a lone brace or a field without a name."""
        self.text = text
        lines = [_parse(line, text) for line in text.split("\n")]
        self._lines = lines
        self.fields = tuple(dict.fromkeys(part for line in lines for part, is_field in line if is_field))
        """Names of the fields, each once."""
        self.is_lone = len(self.fields) == 1 and text == f"{{{self.fields[0]}}}"
        """Whether it is one field and nothing else."""
        self._may_go = [any(is_field for _, is_field in line) and _is_bare(line) for line in lines]

    def fill(self, row: dict[str, Any]) -> Filled:
        """The text for a row."""
        values = {}
        for field in self.fields:
            value = row.get(field, _MISSING)
            if type(value) is not str:
                found = _as_text(field, _value(field, row) if value is _MISSING else value)
                if found.problem:
                    return found
                value = found.text
            values[field] = value
        if self.is_lone:
            return Filled(values[self.fields[0]])
        lines = ["".join(values[part] if is_field else part for part, is_field in line) for line in self._lines]
        if any(goes and not line.strip() for goes, line in zip(self._may_go, lines, strict=True)):
            lines = _without_gaps(lines, self._may_go)
        return Filled("\n".join(lines))

    def pattern(self) -> str:
        """A regular expression of what the template writes, with a group for each place of a field."""
        rows = ["".join("(.*?)" if is_field else re.escape(part) for part, is_field in line) for line in self._lines]
        return "\n".join(rows)


@functools.lru_cache(maxsize=1024)
def template(text: str) -> Template:
    """The parsed template, once a text. Raises: ValueError as `Template` does."""
    return Template(text)


def check(text: str) -> str:
    """`text` again, for a setting's validator. Raises: ValueError if it is no template."""
    template(text)
    return text


def render(text: str, row: dict[str, Any], where: str) -> str:
    """The template for one row. Raises: DataError naming `where` if it does not fit."""
    filled = template(text).fill(row)
    if filled.problem:
        raise DataError(f"{where}: the template {text!r} does not fit the row: {filled.problem}, {filled.detail}")
    return filled.text


def checked(rows: Iterable[RawRow], templates: Iterable[str], where: str) -> Iterator[RawRow]:
    """The rows as they are.

    Raises: DataError at their end if a field of the templates could be read in none of them, with the names that are
    near and the files' own; a field that some rows lack is a matter of these rows.
    """
    unseen = {field: text for text in templates for field in template(text).fields}
    known: dict[str, Any] = {}
    first: RawRow | None = None
    num_rows = 0
    for row in rows:
        if row.value is not None and unseen:
            seen = [field for field in unseen if not _as_text(field, _value(field, row.value)).problem]
            unseen = {field: text for field, text in unseen.items() if field not in seen}
            num_rows += 1
            if num_rows <= _KNOWN_ROWS:
                known = {**row.value, **{name: value for name, value in known.items() if value is not None}}
            first = first or row
        yield row
    if first is not None and unseen:
        field, text = next(iter(unseen.items()))
        hint = f"; {first.hint}" if first.hint else ""
        place = f"{first.uri} row {first.line}" if first.line else first.uri
        raise DataError(f"{where}: the template {text!r} does not fit {place}: {_none_has(field, known)}{hint}")


def paths(value: Any, prefix: str = "") -> list[str]:
    """The paths of a row, or of a list or object in it, that lead to text, numbers and the like; of a list its first
    item."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = [("0", value[0])] if value else []
    else:
        return [prefix]
    return [path for name, item in items for path in paths(item, f"{prefix}.{name}" if prefix else str(name))]


def value(field: str, row: dict[str, Any]) -> Any:
    """What stands at a field or path of a row; None where nothing does."""
    found = _value(field, row)
    return None if found is _MISSING else found


def _parse(line: str, whole: str) -> list[tuple[str, bool]]:
    """(text or name of a field, whether it is a field) of each part of a line."""
    parts: list[tuple[str, bool]] = []
    end = 0
    for match in _PART.finditer(line):
        parts.append((line[end : match.start()], False))
        end = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            parts.append((token[0], False))
        elif token in ("{", "}"):
            raise ValueError(f"a lone {token!r} in the template {whole!r}; write {token * 2!r} for a brace")
        elif not match[1].strip():
            raise ValueError(f"{token!r} in the template {whole!r} names no field; write '{{{{' for a brace")
        else:
            parts.append((match[1], True))
    parts.append((line[end:], False))
    return [part for part in parts if part[0]]


def _is_bare(line: list[tuple[str, bool]]) -> bool:
    return all(is_field or not part.strip() for part, is_field in line)


def _without_gaps(lines: list[str], may_go: list[bool]) -> list[str]:
    """Without the empty lines of fields, and the blank lines before them (at the start: after them)."""
    kept: list[str] = []
    after_start = False
    for line, goes in zip(lines, may_go, strict=True):
        if goes and not line.strip():
            while kept and not kept[-1].strip():
                kept.pop()
            after_start = not kept
        elif line.strip() or not after_start:
            kept.append(line)
            after_start = False
    return kept


def _value(field: str, value: Any) -> Any:
    """What stands at a field or path of a row; `_MISSING` where nothing does, None where a part of the path is null."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        head, _, rest = field.partition(".")
        if not head.isdecimal() or int(head) >= len(value):
            return _MISSING
        return _value(rest, value[int(head)]) if rest else value[int(head)]
    if not isinstance(value, dict):
        return _MISSING
    if field in value:
        return value[field]
    # A name may hold dots itself: the longest that fits goes first.
    at = field.rfind(".")
    while at > 0:
        if field[:at] in value:
            found = _value(field[at + 1 :], value[field[:at]])
            if found is not _MISSING:
                return found
        at = field.rfind(".", 0, at)
    return _MISSING


def _as_text(field: str, value: Any) -> Filled:
    if value is _MISSING:
        return Filled("", "missing_field", f"no field {field!r}")
    if value is None:
        return Filled("")
    if isinstance(value, str):
        return Filled(value)
    if isinstance(value, bool):
        return Filled("true" if value else "false")
    if isinstance(value, int | float | decimal.Decimal):
        if not math.isfinite(value):
            return Filled("", "not_finite", f"{field!r} is {value}")
        return Filled(str(value))
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return Filled(str(value))
    return Filled("", "wrong_type", f"{field!r} is {_kind(value)}{_instead(field, value)}")


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else "no text"


def _instead(field: str, value: Any) -> str:
    found = paths(value, field) if isinstance(value, dict | list | tuple) else []
    return f"; write {' or '.join(f'{{{path}}}' for path in found[:5])}" if found else ""


def _none_has(field: str, known: dict[str, Any]) -> str:
    """Why a field can be read in no row, and what can be."""
    found = _as_text(field, _value(field, known))
    if found.problem in ("wrong_type", "not_finite"):
        return found.detail
    names = list(dict.fromkeys([*map(str, known), *paths(known)]))
    by_lower = {name.lower(): name for name in reversed(names)}
    near = [by_lower[name] for name in difflib.get_close_matches(field.lower(), by_lower, n=3, cutoff=0.6)]
    bare = _FORMAT.sub("", field)
    if bare != field and _value(bare, known) is not _MISSING:
        return f"format specs and conversions such as {field[len(bare) :]!r} are not read here; write {{{bare}}}"
    told = f"; did you mean {' or '.join(f'{{{name}}}' for name in near)}?" if near else ""
    shown = ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    return f"no row has the field {field!r}{told}; its fields are: {shown}"
