"""A field is substituted or refused: no placeholder, no repr and no None ever stays in a text."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from bloomery.components.core.data import render
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.errors import DataError

ROW = {
    "Question Text": "When?",
    "a.b": "dotted",
    "answers": {"text": ["At 7.", "At 8."], "start": [3]},
    "meta": {"title": "Page", "sub.part": {"n": 3}},
    "gone": None,
    "yes": True,
    "score": float("nan"),
    "n": 3.0,
    "braces": "{n}",
    "when": datetime.date(2024, 1, 2),
    "price": Decimal("1.50"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{Question Text}", "When?"),
        ("{a.b}", "dotted"),
        ("{answers.text.0} {answers.text.1}", "At 7. At 8."),
        ("{meta.title}/{meta.sub.part.n}", "Page/3"),
        ("<{gone}>", "<>"),
        ("{gone.below}.", "."),
        ("{yes} {n} {price} {when}", "true 3.0 1.50 2024-01-02"),
        ("{{{n}}} {{n}}", "{3.0} {n}"),
        ("{braces}", "{n}"),
        ("SELECT '{{}}' -- {n}", "SELECT '{}' -- 3.0"),
    ],
)
def test_what_a_field_becomes(text, expected):
    assert render.template(text).fill(ROW) == (expected, "", "")


@pytest.mark.parametrize(
    ("text", "problem", "told"),
    [
        ("{answers}", "wrong_type", "'answers' is an object; write {answers.text.0} or {answers.start.0}"),
        ("{answers.text}", "wrong_type", "'answers.text' is a list; write {answers.text.0}"),
        ("{nothing}", "missing_field", "no field 'nothing'"),
        ("{answers.text.2}", "missing_field", "no field 'answers.text.2'"),
        ("{Question Text.0}", "missing_field", "no field 'Question Text.0'"),
        ("{score}", "not_finite", "'score' is nan"),
        ("{n!r}", "missing_field", "no field 'n!r'"),
    ],
)
def test_what_a_field_is_refused_for(text, problem, told):
    assert render.template(text).fill(ROW) == ("", problem, told)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{q}\n\n{i}", "", "Why?"),
        ("{q}\n\n{i}", None, "Why?"),
        ("{q}\n\n{i}", "x", "Why?\n\nx"),
        ("{i}\n\n{q}", "", "Why?"),
        ("{q}\n{i}\nAnswer:", "", "Why?\nAnswer:"),
        ("{q}\n\n{i}\n\nAnswer:", " ", "Why?\n\nAnswer:"),
        ("{q}\nInput: {i}", "", "Why?\nInput: "),
        ("{i}", "a\n\n\nb", "a\n\n\nb"),
        ("\n{q}\n\n", "", "\nWhy?\n\n"),
    ],
)
def test_a_line_of_empty_fields_leaves_no_gap(text, value, expected):
    assert render.template(text).fill({"q": "Why?", "i": value}).text == expected


@pytest.mark.parametrize("text", ["{", "a } b", "{}", "{ }", "{a{b}}", "{a\nb}"])
def test_what_is_no_template_is_refused_at_once(text):
    with pytest.raises(ValueError, match="write"):
        render.check(text)


def rows(*values):
    return [RawRow(number, value, "", "", "f.csv") for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{Question_Text}", r"no row has the field 'Question_Text'; did you mean \{Question Text\}\?; its fields are"),
        ("{question text}", r"did you mean \{Question Text\}\?"),
        ("{answers}", r"an object; write \{answers.text.0\}"),
        ("{answers.txt.0}", r"did you mean \{answers.text.0\}"),
        ("{score}", "'score' is nan"),
        ("{n:>10}", r"conversions such as ':>10' are not read here; write \{n\}"),
        ("{meta.title!r}", r"conversions such as '!r' are not read here; write \{meta.title\}"),
    ],
)
def test_a_field_that_no_row_has_is_told_with_what_is_near(text, told):
    with pytest.raises(DataError, match=f"here: the template .* does not fit f.csv row 1: .*{told}"):
        list(render.checked(rows(ROW, ROW), [text], "here"))


def test_a_field_that_some_rows_lack_is_a_matter_of_these_rows():
    found = list(render.checked(rows({"a": 1}, {"b": 2}), ["{a}", "{b}"], "here"))
    assert [row.line for row in found] == [1, 2]
    assert [render.template("{a}").fill(row.value).problem for row in found] == ["", "missing_field"]
    assert list(render.checked([], ["{a}"], "here")) == []
