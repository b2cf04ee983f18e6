"""From a row to the text of a document: templates over fields, HTML as Markdown, no front matter.

A page is parsed by lxml (libxml2): balanced tags whatever the markup, in time that grows with its length, where
Python's own parser needs minutes for 100 KB of `<a ` or `<!--`. What is kept of it is decided here, because extractors
of main text are made for articles and prose. Of 600 code blocks on 160 pages of Rust's manuals, fenced and as written:
these rules 600, html2text 538, trafilatura 2.2 145, resiliparse 2.0 none. Of 280 short pages with a heading and SQL,
whole and with the language of the code: these rules 280, the others none; trafilatura drops 218 of the code blocks
and 39 of 60 headings of other short pages, html2text and markdownify keep the navigation.
"""

from __future__ import annotations

import re

from lxml import etree

from bloomery.components.core.data import render
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import SourceConfig, format_of
from bloomery.components.data_curation.clean import on_prose

MAX_HTML_DEPTH = 512
"""Deepest nesting of a page that is read, as in Chromium: every end tag looks through all that is open."""

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?=[\w\"'-]+[ \t]*:)(?:.*\n)*?---[ \t]*(?:\n|\Z)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HTML_START = re.compile(r"\s*(?:<!doctype html|<html[\s>])", re.IGNORECASE)
_LANGUAGE = re.compile(r"\b(?:language|lang|highlight)-(\w+)")
_PART_CHARACTERS = 2**16
_NOT_IN_HTML = re.compile("[\x00-\x08\x0b\x0e-\x1f\ufffe\uffff]")

_UNSEEN = {"script", "style", "noscript", "template", "svg", "head"}
_AROUND = {"nav", "footer", "aside", "form", "button"}
_BLOCKS = set(
    "p div section article main header blockquote ul ol dl dt dd table figure figcaption address details summary "
    "hr".split()
)
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_MARKERS = {"- ", "| ", *_HEADINGS.values()}


def document_text(row: RawRow, source: SourceConfig) -> render.Filled:
    """The text of a row, or the reason why it holds none: a problem of reading or of the template, `broken_html` or
    `empty`. A template that is one field wants text there: a number is no document of its own."""
    if row.value is None:
        return render.Filled("", row.problem, row.hint)
    template = render.template(source.text)
    filled = template.fill(row.value)
    if filled.problem:
        return filled
    if template.is_lone and not isinstance(row.value.get(template.fields[0], ""), str):
        field, is_null = template.fields[0], row.value[template.fields[0]] is None
        return render.Filled("", "missing_field" if is_null else "wrong_type", f"{field!r} is no text")
    text = filled.text
    if format_of(row.uri) == "html" or _HTML_START.match(text):
        try:
            text = html_to_markdown(text)
        except ValueError:
            return render.Filled("", "broken_html")
    else:
        text = on_prose(_FRONT_MATTER.sub("", text.replace("\r\n", "\n")), _without_comments)
    return render.Filled(text) if text.strip() else render.Filled("", "empty")


def _without_comments(prose: str) -> str:
    # Without an end in sight the pattern would run to the end of the text from every beginning.
    return _COMMENT.sub("", prose) if "-->" in prose else prose


def html_to_markdown(html: str) -> str:
    """The readable text of a page as Markdown, without navigation and scripts; code blocks as they are.

    Raises: ValueError if tags are nested deeper than MAX_HTML_DEPTH.
    """
    for skipped in (_UNSEEN | _AROUND, _UNSEEN):
        page = _Page(skipped)
        parser = etree.HTMLParser(target=page, huge_tree=True)
        readable = _NOT_IN_HTML.sub("", html)
        try:
            # What `_Page` raises is heard after each part.
            for start in range(0, len(readable), _PART_CHARACTERS):
                parser.feed(readable[start : start + _PART_CHARACTERS])
            parser.close()
        except etree.XMLSyntaxError:
            # A page without anything in it.
            return ""
        text = "".join(page.pieces).strip()
        # A page whose navigation is never closed, or that is nothing else, is read again with it.
        if text:
            return text
    return ""


class _Page:
    """What lxml's parser tells as it goes: `start`, `end` and `data` of elements in their order."""

    def __init__(self, skipped: set[str]) -> None:
        self.pieces: list[str] = []
        self._skipped = skipped
        self._depth = 0
        self._skipped_depth = 0
        self._breaks = 0
        self._code: list[str] | None = None
        self._language = ""
        self._cells = 0
        self._header_cells = 0

    def start(self, tag: str, attrs: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_HTML_DEPTH:
            raise ValueError(f"tags are nested deeper than {MAX_HTML_DEPTH}")
        if self._skipped_depth or tag in self._skipped:
            self._skipped_depth += 1
        elif self._code is not None:
            self._start_in_code(tag, attrs)
        elif tag == "pre":
            self._code, self._language = [], _language(attrs)
        elif tag == "code":
            self._write("`")
        elif tag in _HEADINGS:
            self._breaks += 2
            self._write(_HEADINGS[tag])
        elif tag == "li":
            self._breaks += 1
            self._write("- ")
        elif tag in ("td", "th"):
            self._write("| ")
            self._cells += 1
            self._header_cells += tag == "th"
        elif tag == "br" or tag in _BLOCKS:
            # `<li><p>` is one line: what a marker stands before may begin with a block.
            self._breaks += not self.pieces or self.pieces[-1] not in _MARKERS

    def _start_in_code(self, tag: str, attrs: dict[str, str]) -> None:
        assert self._code is not None
        if tag == "code":
            self._language = self._language or _language(attrs)
        elif tag == "br":
            self._code.append("\n")

    def end(self, tag: str) -> None:
        self._depth -= 1
        if self._skipped_depth:
            self._skipped_depth -= 1
        elif self._code is not None:
            if tag == "pre":
                self._end_code("".join(self._code))
        elif tag == "code":
            self._write("`")
        elif tag in _HEADINGS or tag == "p":
            self._breaks += 2
        elif tag in ("td", "th"):
            if self.pieces[-1][-3:] not in ("```", "~~~"):
                self._breaks = 0
            self._write(" ")
        elif tag == "tr":
            self._end_table_row()
        elif tag in _BLOCKS:
            self._breaks += 1

    def _end_code(self, code: str) -> None:
        fence = "~~~" if "```" in code else "```"
        self._code = None
        if code.strip():
            self._breaks += 2
            # Browsers leave out a line end right after the tag too.
            lines = code.removeprefix("\n").removesuffix("\n")
            self._write(f"{fence}{self._language}\n{lines}\n{fence}")
        self._breaks += 2

    def _end_table_row(self) -> None:
        if self._cells:
            self._write("|")
        if self._header_cells and self._header_cells == self._cells:
            self._write("\n" + "| --- " * self._cells + "|")
        self._cells = self._header_cells = 0
        self._breaks += 1

    def data(self, data: str) -> None:
        if self._skipped_depth:
            return
        if self._code is not None:
            self._code.append(data)
            return
        words = re.sub(r"\s+", " ", data)
        at_line_start = self._breaks or not self.pieces or self.pieces[-1].endswith(" ")
        words = words.lstrip() if at_line_start else words
        if words:
            self._write(words)

    def _write(self, text: str) -> None:
        """Append `text` after the line ends that wait for it: a blank line at most, none at the start."""
        if self._breaks and self.pieces:
            self.pieces.append("\n" * min(self._breaks, 2))
        self._breaks = 0
        self.pieces.append(text)

    def close(self) -> None:
        """Called at the end of the page."""


def _language(attrs: dict[str, str]) -> str:
    """`sql` of `<code class="language-sql">`."""
    found = _LANGUAGE.search(attrs.get("class", ""))
    return found.group(1) if found else ""
