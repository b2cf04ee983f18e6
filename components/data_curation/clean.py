"""Repair of prose: encodings, Unicode form, controls, boilerplate lines. Fenced code is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pyarrow as pa

from bloomery.components.core.tables import engine

_FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[^\S\n]*$", re.MULTILINE | re.DOTALL)
# What UTF-8 turns into when read as Latin-1 or Windows-1252, terminal escapes, ligatures and controls.
_SUSPECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\u02ff\u1e00-\u1eff\u2000-\u2bff\ufb00-\ufb06\ufe00-\uffff]")
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
    if "```" not in text and "~~~" not in text:
        return change(text)
    parts, end = [], 0
    for block in _FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def without_code(text: str) -> str:
    """`text` without its fenced code blocks."""
    return _FENCE.sub(" ", text)


def clean(text: str) -> str:
    """`text` in NFC, mojibake repaired, without control characters, trailing spaces and blank lines in a
    row."""
    return on_prose(text, _clean_prose).strip()


def _clean_prose(text: str) -> str:
    import unicodedata

    if _SUSPECT.search(text):
        text = _INVISIBLE.sub("", _repair()(text))
    if not text.isascii():
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


def remove_boilerplate(texts: pa.Array, sources: pa.Array, max_share: float) -> tuple[list[str], int]:
    """(texts without boilerplate lines, number of lines removed).

    A line near either end is boilerplate if it stands there in more than `max_share` of the documents of its
    source, and in at least MIN_BOILERPLATE_DOCUMENTS. Headings, short lines and code are left alone.
    """
    daft = engine()
    col = daft.col
    documents = daft.from_arrow(pa.table({"source": sources, "text": texts}))
    sizes = documents.groupby("source").agg(col("source").count().alias("num_documents"))
    strings = daft.DataType.list(daft.DataType.string())
    counted = (
        documents.with_column("line", col("text").apply(_different_edge_lines, return_dtype=strings))
        .select("source", "line")
        .explode("line")
        .where(col("line").not_null())
        .groupby("source", "line")
        .agg(col("source").count().alias("num_found"))
        .where(col("num_found") >= MIN_BOILERPLATE_DOCUMENTS)
        .join(sizes, on="source")
        .where(col("num_found") > col("num_documents") * max_share)
        .to_pydict()
    )
    boilerplate: dict[str, set[str]] = {}
    for source, line in zip(counted["source"], counted["line"], strict=True):
        boilerplate.setdefault(source, set()).add(line)
    cleaned, num_removed = [], 0
    for text, source in zip(texts.to_pylist(), sources.to_pylist(), strict=True):
        removed = {index for index, line in _edge_lines(text) if line in boilerplate.get(source, ())}
        if removed:
            num_removed += len(removed)
            lines = (line for index, line in enumerate(text.split("\n")) if index not in removed)
            text = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()
        cleaned.append(text)
    return cleaned, num_removed


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
    edges = filled if len(filled) <= 2 * EDGE_LINES else filled[:EDGE_LINES] + filled[-EDGE_LINES:]
    return [(index, line) for index, line in edges if _can_be_boilerplate(line)]


def _different_edge_lines(text: str) -> list[str]:
    return sorted({line for _, line in _edge_lines(text)})


def _can_be_boilerplate(line: str) -> bool:
    return not line.startswith("#") and sum(map(str.isalpha, line)) >= MIN_BOILERPLATE_LETTERS
