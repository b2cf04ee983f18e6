"""From a row to the text of a document: templates over fields, HTML as Markdown, no front matter."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from bloomery.components.core.formats import RawRow
from bloomery.components.core.tables import SourceConfig, format_of
from bloomery.components.data_curation.clean import on_prose

_FIELD = re.compile(r"\{(\w+)\}")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?=[\w\"'-]+[ \t]*:)(?:.*\n)*?---[ \t]*(?:\n|\Z)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HTML_START = re.compile(r"\s*(?:<!doctype html|<html[\s>])", re.IGNORECASE)


def document_text(row: RawRow, source: SourceConfig) -> tuple[str, str]:
    """(text, '') of a row, or ('', reason) where it holds no text: a problem of reading, `missing_field`,
    `wrong_type` or `empty`."""
    if row.value is None:
        return "", row.problem
    text, problem = fill(source.text, row.value)
    if problem:
        return "", problem
    if format_of(row.uri) == "html" or _HTML_START.match(text):
        text = html_to_markdown(text)
    else:
        text = on_prose(_FRONT_MATTER.sub("", text.replace("\r\n", "\n")), _without_comments)
    return (text, "") if text.strip() else ("", "empty")


def _without_comments(prose: str) -> str:
    # Without an end in sight the pattern would run to the end of the text from every beginning.
    return _COMMENT.sub("", prose) if "-->" in prose else prose


def fill(template: str, fields: dict[str, Any]) -> tuple[str, str]:
    """(template with its `{field}` filled in, '') or ('', `missing_field` | `wrong_type`).

    Text is a string. Numbers may stand inside a longer template, but are no document of their own.
    """
    is_lone = _FIELD.fullmatch(template) is not None
    for name in _FIELD.findall(template):
        if fields.get(name) is None:
            return "", "missing_field"
        value = fields[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, str) and (is_lone or not is_number):
            return "", "wrong_type"
    return _FIELD.sub(lambda match: str(fields[match.group(1)]), template), ""


def html_to_markdown(html: str) -> str:
    """The readable text of a page as Markdown, without navigation and scripts."""
    for skipped in (_UNSEEN | _AROUND, _UNSEEN):
        parser = _Page(skipped)
        parser.feed(html)
        parser.close()
        text = re.sub(r"\n{3,}", "\n\n", "".join(parser.pieces)).strip()
        # A page whose navigation is never closed, or that is nothing else, is read again with it.
        if text:
            return text
    return ""


_UNSEEN = {"script", "style", "noscript", "template", "svg", "head"}
_AROUND = {"nav", "footer", "aside", "form", "button"}
_BLOCKS = set(
    "p div section article main header blockquote ul ol dl dt dd table tr figure figcaption address details "
    "summary hr".split()
)
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}


class _Page(HTMLParser):
    def __init__(self, skipped: set[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._skipped = skipped
        self._depth = 0
        self._in_code_block = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._skipped:
            self._depth += 1
        elif tag == "pre":
            self._in_code_block = True
            self.pieces.append("\n\n```\n")
        elif tag == "code" and self._in_code_block:
            self._name_language(dict(attrs).get("class") or "")
        elif tag == "code":
            self.pieces.append("`")
        elif tag in _HEADINGS:
            self.pieces.append(f"\n\n{_HEADINGS[tag]}")
        elif tag == "li":
            self.pieces.append("\n- ")
        elif tag in ("td", "th"):
            self.pieces.append("| ")
        elif tag == "br" or tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped:
            self._depth = max(0, self._depth - 1)
        elif tag == "pre":
            self._in_code_block = False
            self.pieces.append("\n```\n")
        elif tag == "code" and not self._in_code_block:
            self.pieces.append("`")
        elif tag in _HEADINGS or tag == "p":
            self.pieces.append("\n\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")
        elif tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._depth:
            return
        if self._in_code_block:
            self.pieces.append(data)
            return
        words = re.sub(r"\s+", " ", data)
        at_line_start = not self.pieces or self.pieces[-1].endswith(("\n", " "))
        self.pieces.append(words.lstrip() if at_line_start else words)

    def _name_language(self, classes: str) -> None:
        """`<pre><code class="language-sql">` opens a fence with its language."""
        language = re.search(r"\b(?:language|lang|highlight)-(\w+)", classes)
        if language and self.pieces[-1] == "\n\n```\n":
            self.pieces[-1] = f"\n\n```{language.group(1)}\n"
