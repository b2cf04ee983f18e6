"""Repair of prose: encodings, Unicode form, controls, boilerplate lines. Fenced code is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import xxhash

_FENCE = re.compile(r"^(```|~~~)[^\n]*\n", re.MULTILINE)
_CLOSING = {mark: re.compile(rf"^{mark}[^\S\n]*$", re.MULTILINE) for mark in ("```", "~~~")}
# What UTF-8 turns into when read as Latin-1 or Windows-1252, terminal escapes, ligatures and controls.
_SUSPECT = r"[\x00-\x08\x0b-\x1f\x7f-\u02ff\u1e00-\u1eff\u2000-\u2bff\ufb00-\ufb06\ufe00-\uffff]"
_SUSPECT_LINE = re.compile(rf"^[^\n]*?{_SUSPECT}[^\n]*", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*){2,}")
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")

EDGE_LINES = 5
"""Boilerplate is looked for in this many lines at either end: a sentence that stands in the middle of many
pages of a reference ("Returns S_OK on success", 9 % of vs_docs_ko) is content."""
MIN_BOILERPLATE_DOCUMENTS = 10
"""A line is no boilerplate below this count, however small the source."""
MIN_BOILERPLATE_LETTERS = 10
"""Shorter lines, such as `Example:`, repeat in good documents."""


def on_prose(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` applied to what stands outside fenced code blocks."""
    parts, end = [], 0
    for start, past in _code_blocks(text):
        parts += [change(text[end:start]), text[start:past]]
        end = past
    return "".join([*parts, change(text[end:])])


def without_code(text: str) -> str:
    """`text` without its fenced code blocks."""
    parts, end = [], 0
    for start, past in _code_blocks(text):
        parts.append(text[end:start])
        end = past
    return " ".join([*parts, text[end:]])


def _code_blocks(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each fenced code block; a fence that is never closed opens none."""
    end, unclosed = 0, set()
    for fence in _FENCE.finditer(text) if "```" in text or "~~~" in text else ():
        mark = fence[1]
        if fence.start() < end or mark in unclosed:
            continue
        closing = _CLOSING[mark].search(text, fence.end())
        if closing is None:
            unclosed.add(mark)  # nor is any later one: without this, time would be quadratic in their number
        else:
            end = closing.end()
            yield fence.start(), end


def clean(text: str) -> str:
    """`text` in NFC, mojibake repaired, without control characters, trailing spaces and blank lines in a
    row."""
    return on_prose(text, _clean_prose).strip()


def _clean_prose(text: str) -> str:
    import unicodedata

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii() or _CONTROL.search(text):
        # ftfy looks at each line by itself, so the lines in which there is nothing to repair need not be shown to it.
        text = _SUSPECT_LINE.sub(lambda line: _INVISIBLE.sub("", _repair()(line.group())), text)
        text = unicodedata.normalize("NFC", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text))


@cache
def _repair() -> Callable[[str], str]:
    """ftfy, told to mend what is broken and to leave the author's quotation marks, widths and entities."""
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_character_width=False, explain=False, normalization=None
    )
    return lambda text: ftfy.fix_text(text, config)


def edge_line_hashes(text: str) -> list[int]:
    """64-bit hashes of the different lines near either end of `text` that could be boilerplate."""
    return sorted({_line_hash(line) for _, line in _edge_lines(text)})


def boilerplate_hashes(hashes: np.ndarray, num_documents: int, max_share: float) -> frozenset[int]:
    """Hashes of the lines of a source that are boilerplate, of the `edge_line_hashes` of all its documents.

    A line is boilerplate if it stands near either end of more than `max_share` of the documents, and of at least
    MIN_BOILERPLATE_DOCUMENTS.
    """
    found, counts = np.unique(hashes, return_counts=True)
    often = (counts >= MIN_BOILERPLATE_DOCUMENTS) & (counts > num_documents * max_share)
    return frozenset(found[often].tolist())


def remove_boilerplate(text: str, boilerplate: frozenset[int]) -> tuple[str, int]:
    """(`text` without its boilerplate lines, number of lines removed). Headings, short lines and code stay."""
    if not boilerplate:
        return text, 0
    removed = {index for index, line in _edge_lines(text) if _line_hash(line) in boilerplate}
    if removed:
        lines = (line for index, line in enumerate(text.split("\n")) if index not in removed)
        text = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()
    return text, len(removed)


def _line_hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(line.encode())


def _edge_lines(text: str) -> list[tuple[int, str]]:
    """(index, line) of those of the first and last EDGE_LINES lines with text that could be boilerplate."""
    filled = []
    in_code = False
    for index, line in enumerate(text.split("\n")):
        stripped = line.strip()
        is_fence = stripped.startswith(("```", "~~~"))
        in_code ^= is_fence
        if stripped:
            filled.append((index, "" if in_code or is_fence else stripped))
    if len(filled) == 1:
        return []  # a text of one line is all content, however many others it equals
    edges = filled if len(filled) <= 2 * EDGE_LINES else filled[:EDGE_LINES] + filled[-EDGE_LINES:]
    return [(index, line) for index, line in edges if _can_be_boilerplate(line)]


def _can_be_boilerplate(line: str) -> bool:
    return not line.startswith("#") and sum(map(str.isalpha, line)) >= MIN_BOILERPLATE_LETTERS
