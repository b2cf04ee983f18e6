"""Charts: where marks fall, what they say, and what is escaped."""

from __future__ import annotations

import math
import re

import pytest

from bloomery.pipelines import charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1]),
        (0.02, 0.83, [0, 0.5, 1]),
        (7.3, 7.3, [6, 8]),
        (-0.3, 12.0, [-5, 0, 5, 10, 15]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert charts.ticks(low, high, 4) == pytest.approx(expected)


def test_charts_carry_their_values_for_those_who_cannot_see_them():
    svg = charts.bars("Rows <kept>", [charts.Bar("a & b", 3, "3"), charts.Bar("c", 0, "0", muted=True)])
    assert 'aria-label="Rows &lt;kept&gt;: a &amp; b 3; c 0"' in svg
    assert "Rows &lt;kept&gt;</figcaption>" in svg


def test_a_ladder_places_marks_on_its_axis():
    rows = [charts.Interval("base", 0.0, 0.0, 0.2, "start"), charts.Interval("sft", 1.0, 0.8, 1.0, "final")]
    svg = charts.ladder("score", rows, "mean score", charts.percent)
    marks = [float(x) for x in re.findall(r'class="mark" (?:cx="|d="M)([\d.]+)', svg)]
    ticks = [float(x) for x in re.findall(r'<text class="middle tick" x="([\d.]+)"', svg)]
    assert marks == [ticks[0], ticks[-1]]
    assert ">0 %<" in svg and ">100 %<" in svg and "base: 0.0 %, 95 % interval 0.0 % to 20.0 %" in svg


def test_a_row_without_an_interval_has_no_whisker():
    rows = [charts.Interval("base", 0.5, math.nan, math.nan), charts.Interval("sft", 0.6, 0.5, 0.7)]
    assert charts.ladder("score", rows, "mean score", charts.percent).count("whisker") == 1


def test_the_lowest_validation_loss_is_ringed():
    curve = charts.Series("validation", [(1, 3.0), (2, 1.0), (3, 2.0)], "validation", ring=True)
    svg = charts.lines("sft", [curve], "step", "loss")
    assert svg.count('class="best"') == 1 and "step 2: 1 (lowest)" in svg and "from 3 to 2" in svg


def test_long_labels_are_shortened_and_kept_whole_in_the_tooltip():
    svg = charts.bars("why", [charts.Bar("가" * 60, 1, "1")])
    assert "…</text>" in svg and "<title>" + "가" * 60 in svg


def test_the_chosen_point_is_a_diamond_on_top():
    points = [charts.Point("small", 1e6, 0.8, 0.7, 0.9, True), charts.Point("large", 4e6, 0.7, 0.6, 0.8)]
    svg = charts.scatter("size", points, "size on disk", "score", charts.size, charts.percent)
    assert svg.index("large: 4 MB") < svg.index("small: 1 MB, 80.0 %, chosen") and svg.count("<path") == 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (charts.duration(59.94), "59.9 s"),
        (charts.duration(61.4), "1 min 1 s"),
        (charts.duration(7_380), "2 h 3 min"),
        (charts.size(999), "999 B"),
        (charts.size(8_400_000), "8.4 MB"),
        (charts.percent(0.8333), "83.3 %"),
        (charts.number(12345.6), "12,346"),
        (charts.number(0.81234), "0.8123"),
    ],
)
def test_numbers_are_told_with_their_units(told, expected):
    assert told == expected


def test_a_matrix_shades_each_cell_by_its_share_of_the_row():
    svg = charts.matrix("who is who", ["a<", "b"], ["a<", "b", "(other)"], [[3, 1, 0], [0, 2, 0]])
    assert "a&lt; answered as b: 1 (25.0 %)" in svg and 'fill-opacity="0.76"' in svg
    assert svg.count("<rect") == 6 and ">1</text>" in svg and ">other</text>" in svg


def test_a_guide_is_on_the_axis():
    rows = [charts.Interval("a", 0.5, 0.4, 0.6)]
    assert charts.ladder("d", rows, "difference", charts.percent, guide=0.0).count('class="guide"') == 1
