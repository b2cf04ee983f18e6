"""Pages become Markdown: what is kept byte for byte, what is dropped, and that no markup can make it slow."""

from __future__ import annotations

import html
import random
import re
import time

import pytest

from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import SourceConfig
from bloomery.components.data_curation.extract import document_text, html_to_markdown

SOURCE = SourceConfig(path="x", name="s")
COOKBOOK = re.compile(r"^#+ (?P<title>[^\n]+)\n+```sql\n(?P<sql>[^`]+?)\n```", re.MULTILINE)


def page(body):
    return f"<!DOCTYPE html><html><head><title>T</title></head><body>{body}</body></html>"


def test_code_is_kept_byte_for_byte():
    code = "SELECT a,\n\n\n\n       '&lt;'  -- 한글  \n  FROM t\tWHERE a < 3"
    shown = f'<h2>Orders</h2>\n<pre><code class="hljs language-sql">{html.escape(code)}\n</code></pre><p>after</p>'
    assert html_to_markdown(page(shown)) == f"## Orders\n\n```sql\n{code}\n```\n\nafter"
    highlighted = '<pre class="highlight-python"><span>def</span> <b>f</b>():<br>    <i>pass</i></pre>'
    assert html_to_markdown(page(highlighted)) == "```python\ndef f():\n    pass\n```"
    assert html_to_markdown(page("<pre>\n```\nx</pre>")) == "~~~\n```\nx\n~~~"
    assert html_to_markdown(page("<p>a</p><pre> </pre><p>b</p>")) == "a\n\nb"


@pytest.mark.parametrize(("title", "prose"), [("Orders < 3", "One row each."), ("주문 & 환불", "한 줄씩이다.")])
def test_a_cookbook_entry_is_found_in_its_page(title, prose):
    sql = "SELECT COUNT(*) FROM orders WHERE total > 3 AND name LIKE '가%'"
    body = (
        f"<nav>홈 | Shop</nav><main><h2>{html.escape(title)}</h2>"
        f'<pre><code class="language-sql">{html.escape(sql)}\n</code></pre><p>{prose}</p></main><footer>©</footer>'
    )
    text, problem, _ = document_text(RawRow(0, {"text": page(body)}, "", "", "a.html"), SOURCE)
    assert COOKBOOK.search(text).groupdict() == {"title": title, "sql": sql}
    assert (problem, text.endswith(f"```\n\n{prose}"), "Shop" in text) == ("", True, False)


def test_headings_lists_and_tables():
    body = (
        "<h1>A\n  <em>b</em></h1><h3>c</h3><ul><li><p>one</p></li><li>two <b>x</b> <i>y</i></ul>"
        "<table><thead><tr><th>n<th>가격<tbody><tr><td><p>1</p><td>2</table>end<br>line<br><br>paragraph"
    )
    assert html_to_markdown(page(body)) == (
        "# A b\n\n### c\n\n- one\n\n- two x y\n\n| n | 가격 |\n| --- | --- |\n| 1 | 2 |\n\nend\nline\n\nparagraph"
    )


def test_what_is_not_the_text_of_a_page_is_dropped():
    body = (
        "<nav><ul><li>menu</ul></nav><script>var a = '<p>';</script><style>p{}</style><noscript>no</noscript>"
        "<svg><text>s</text></svg><!-- c --><p>kept</p><aside>side</aside><form><button>b</button></form>"
        "<footer>f</footer>"
    )
    assert html_to_markdown(page(body)) == "kept"
    assert html_to_markdown(page("<nav>only a menu</nav>")) == "only a menu"
    assert html_to_markdown("<head><p>a head that never closes") == "a head that never closes"


def test_the_text_rules_and_not_what_the_page_says_of_its_encoding():
    for head in ('<meta charset="euc-kr">', "<?xml version='1.0' encoding='euc-kr'?>"):
        assert html_to_markdown(f"{head}<p>한국어 페이지 &#54620; 😀") == "한국어 페이지 한 😀"
    assert html_to_markdown("<p>a\x00\x01b &amp; 1 < 2 &unknown; &#xD800;") == "ab & 1 < 2 &unknown; \ufffd"


@pytest.mark.parametrize("markup", ["", " ", "<!-- only a comment -->", "<textarea>", "</p></div>", "<p></p>"])
def test_a_page_without_text_is_empty(markup):
    assert document_text(RawRow(0, {"text": markup}, "", "", "a.html"), SOURCE)[:2] == ("", "empty")


def test_tags_nested_without_end_are_told():
    assert html_to_markdown("<div>" * 500 + "x") == "x"
    row = RawRow(0, {"text": "<div>" * 600 + "x"}, "", "", "a.html")
    assert document_text(row, SOURCE)[:2] == ("", "broken_html")


@pytest.mark.parametrize(
    "piece",
    ["<", "<a ", "<!--", "</", "<!", "<?", "<![CDATA[", '<a b="', "<b></i>", "<div>", "<li>", "&amp", "&#", "<pre>"]
    + ["<table>", "<script>", "<script><!--", "<!doctype [", "</p>", "<br>", " ", "<td>", "```", "<textarea>"],
)
def test_no_markup_takes_more_than_its_length(piece):
    started = time.process_time()
    document_text(RawRow(0, {"text": piece * (2**19 // len(piece))}, "", "", "a.html"), SOURCE)
    # What grows with the square takes minutes for half a megabyte; the slowest of these takes 0.4 s.
    assert time.process_time() - started < 5


def test_where_the_parts_of_a_page_are_cut_changes_nothing(monkeypatch):
    rng = random.Random(0)
    pieces = "<p> </p> <b> 한국어 a&amp;b <!--c--> <pre> </pre> <h2> </h2> <td> <tr> <table> 😀 & < </ <li>".split(" ")
    for _ in range(50):
        text = " ".join(rng.choices(pieces, k=100))
        whole = html_to_markdown(text)
        monkeypatch.setattr("bloomery.components.data_curation.extract._PART_CHARACTERS", 7)
        assert html_to_markdown(text) == whole
        monkeypatch.undo()
