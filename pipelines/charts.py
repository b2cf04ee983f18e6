"""Five small charts as inline SVG: dots with intervals, lines, horizontal bars, labelled points, a matrix of counts.

A chart is a `<figure>` whose colours are CSS classes of the page that holds it, so light, dark and print
are decided there. Every mark is also told by shape or label, never by colour alone, and carries its values
as a tooltip and in the `aria-label` of its chart. All text is escaped here. Lengths are SVG user units;
every chart is `WIDTH` wide and scales with the page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 400
ROW = 24
"""Height of a row of the ladder and of the bars."""
AXIS = 38
"""Height of an x axis with its tick labels and its name."""


class Interval(NamedTuple):
    """A row of the ladder: an estimate with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "stage"
    """`start`, `stage`, `final` or `champion`: the shape and colour of the mark."""


class Series(NamedTuple):
    """A line; `kind` is `train`, or `validation`, which has dots. With `ring` its lowest point is ringed."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    ring: bool = False


class Bar(NamedTuple):
    """A horizontal bar; a `muted` one is drawn hollow."""

    label: str
    value: float
    text: str
    muted: bool = False


class Point(NamedTuple):
    """A labelled point with an interval in y."""

    label: str
    x: float
    y: float
    low: float
    high: float
    chosen: bool = False
    front: bool = False
    """Joined by a line with the others of the front."""


def ladder(
    title: str, rows: Sequence[Interval], axis: str, form: Callable[[float], str], guide: float | None = None
) -> str:
    """One row a model: a mark at its value, a line over its interval; `form` writes a value with its unit.

    A dashed line stands at the champion and at `guide`.
    """
    left, right = _label_width([row.label for row in rows]), WIDTH - 58
    marks = [value for row in rows for value in (row.low, row.value, row.high) if math.isfinite(value)]
    guides = [row.value for row in rows if row.kind == "champion"] + ([] if guide is None else [guide])
    x, axis_marks = _x_axis([*marks, *guides], left, right, len(rows) * ROW + 4, axis, form)
    body = [axis_marks]
    for value in guides:
        body.append(f'<line class="guide" x1="{x(value)}" x2="{x(value)}" y1="0" y2="{len(rows) * ROW + 4}"/>')
    for index, row in enumerate(rows):
        y = index * ROW + ROW / 2 + 2
        tip = f"{row.label}: {form(row.value)}"
        mark = ""
        if math.isfinite(row.low) and math.isfinite(row.high):
            tip += f", 95 % interval {form(row.low)} to {form(row.high)}"
            mark = f'<line class="whisker" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"/>'
        body.append(
            f'<g class="{escape(row.kind)}"><title>{escape(tip)}</title>{_label(row.label, left, y)}{mark}'
            f"{_mark(row.kind, x(row.value), y)}{_text(form(row.value), WIDTH, y, 'end value')}</g>"
        )
    told = "; ".join(f"{row.label} {form(row.value)}" for row in rows)
    return _figure(title, told, len(rows) * ROW + 4 + AXIS, body)


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    events: Sequence[tuple[float, str]] = (),
) -> str:
    """Curves over steps; a dashed line stands at each event."""
    height, left, right, top = 160, 40, WIDTH - 12, 30
    y_all = [y for line in series for _, y in line.points]
    x, axis_marks = _x_axis(
        [p for line in series for p, _ in line.points] + [at for at, _ in events], left, right, height, x_label, number
    )
    y, grid = _y_axis(y_all, left, right, top, height - 6, number)
    body = [axis_marks, grid, _text(y_label, 0, 8, "axis-name")]
    for at, told in events:
        mark = f'<line class="guide" x1="{x(at)}" x2="{x(at)}" y1="{top}" y2="{height}"/>'
        body.append(f"<g><title>{escape(told)}</title>{mark}{_text(told, x(at) - 4, top + 4, 'end tick')}</g>")
    for index, line in enumerate(series):
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
        body.append(f'<polyline class="line {escape(line.kind)}" points="{path}"/>')
        if line.kind == "validation":
            best = min(line.points, key=lambda point: point[1]) if line.ring else None
            for a, b in line.points:
                tip = f"{x_label} {number(a)}: {b:.4g}" + (" (lowest)" if (a, b) == best else "")
                radius, kind = (4.5, "best") if (a, b) == best else (2.5, "dot")
                circle = f'<circle class="{kind}" cx="{x(a)}" cy="{y(b)}" r="{radius}">'
                body.append(f"{circle}<title>{tip}</title></circle>")
        at = WIDTH - 12 - 96 * (len(series) - 1 - index)
        body.append(f'<line class="line {escape(line.kind)}" x1="{at - 84}" x2="{at - 68}" y1="8" y2="8"/>')
        body.append(_text(line.name, at - 62, 8, "legend"))
    told = "; ".join(
        f"{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in series
    )
    return _figure(title, told, height + AXIS, body)


def bars(title: str, rows: Sequence[Bar], note: str = "") -> str:
    """One horizontal bar a row from zero, with its label at the left and its `text` at its end."""
    left = _label_width([row.label for row in rows])
    room = WIDTH - left - max(_text_width(row.text) for row in rows) - 12
    top = max((row.value for row in rows), default=0) or 1
    body = []
    for index, row in enumerate(rows):
        y, width = index * ROW + ROW / 2, max(row.value / top * room, 1)
        kind = "bar muted" if row.muted else "bar"
        body.append(
            f"<g><title>{escape(f'{row.label}: {row.text}')}</title>{_label(row.label, left, y)}"
            f'<rect class="{kind}" x="{left:.1f}" y="{y - 7}" width="{width:.1f}" height="14" rx="2"/>'
            f"{_text(row.text, left + width + 6, y, 'value')}</g>"
        )
    return _figure(title, "; ".join(f"{row.label} {row.text}" for row in rows), len(rows) * ROW, body, note)


def matrix(
    title: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], note: str = ""
) -> str:
    """Counts in a grid, each cell shaded by its share of its row; columns are numbered as the rows are."""
    labels = [f"{at + 1}  {row}" for at, row in enumerate(rows)]
    left = min(_label_width(labels), 0.45 * WIDTH)
    side = min((WIDTH - left) / len(columns), 34.0)
    heads = [str(rows.index(column) + 1) if column in rows else column.strip("()") for column in columns]
    body = [_text(head, left + side * (at + 0.5), 8, "middle tick") for at, head in enumerate(heads)]
    for y, (label, line) in enumerate(zip(labels, counts, strict=True)):
        body.append(_label(label, left, ROW * (y + 1.2)))
        for x, count in enumerate(line):
            share = count / (sum(line) or 1)
            tip = f"{rows[y]} answered as {columns[x]}: {count} ({percent(share)})"
            place = f'x="{left + side * x + 1:.1f}" y="{ROW * (y + 0.7) + 1:.1f}"'
            body.append(
                f'<g><title>{escape(tip)}</title><rect class="cell" {place} width="{side - 2:.1f}" height="{ROW - 2}" '
                f'fill-opacity="{0.04 + 0.96 * share:.2f}"/>'
            )
            kind = "middle tick cell-text" + (" dark" if share > 0.5 else "")
            body.append((_text(str(count), left + side * (x + 0.5), ROW * (y + 1.2), kind) if count else "") + "</g>")
    told = "; ".join(f"{row}: {max(line)} of {sum(line)} in one cell" for row, line in zip(rows, counts, strict=True))
    return _figure(title, told, ROW * (len(rows) + 0.9), body, note)


def scatter(
    title: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    x_form: Callable[[float], str],
    y_form: Callable[[float], str],
) -> str:
    """Labelled points with vertical intervals; the chosen one is a filled diamond, a line joins the front."""
    height, left, right, top = 190, 52, WIDTH - 16, 30
    x, axis_marks = _x_axis([0.0, *(p.x for p in points)], left, right, height, x_label, x_form)
    finite = [value for p in points for value in (p.low, p.y, p.high) if math.isfinite(value)]
    y, grid = _y_axis(finite, left, right, top, height - 6, y_form)
    body = [axis_marks, grid, _text(y_label, 0, 8, "axis-name")]
    joined = [f"{x(p.x)},{y(p.y)}" for p in sorted(points, key=lambda p: (p.x, p.y)) if p.front]
    body += [f'<polyline class="whisker" fill="none" points="{" ".join(joined)}"/>'] if len(joined) > 1 else []
    free, drawn = 0.0, []
    for p in sorted(points, key=lambda p: y(p.y)):
        kind = "final" if p.chosen else "stage"
        free = max(free + 14, y(p.y) - 9)  # labels of points that lie close stand one below the other
        whisker = ""
        if math.isfinite(p.low) and math.isfinite(p.high):
            whisker = f'<line class="whisker" x1="{x(p.x)}" x2="{x(p.x)}" y1="{y(p.low)}" y2="{y(p.high)}"/>'
        near_right = x(p.x) > right - _text_width(p.label) - 10
        label = _text(
            p.label, x(p.x) + (-9 if near_right else 9), free, "end value" if near_right else "value"
        )
        tip = escape(f"{p.label}: {x_form(p.x)}, {y_form(p.y)}" + (", chosen" if p.chosen else ""))
        drawn.append(
            (
                p.chosen,
                f'<g class="{kind}"><title>{tip}</title>{whisker}{_mark(kind, x(p.x), y(p.y))}{label}</g>',
            )
        )
    body += [svg for _, svg in sorted(drawn, key=lambda item: item[0])]  # the chosen one lies on top
    told = "; ".join(f"{p.label} {x_form(p.x)} {y_form(p.y)}" for p in points)
    return _figure(title, told, height + AXIS, body)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits, or a whole number with thousands apart."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def percent(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f} %".replace("-", "−")


def size(value: float) -> str:
    """Bytes in decimal units."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= power:
            return f"{value / power:.3g} {unit}"
    return f"{value:.0f} B"


def duration_ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{1000 * seconds:.3g} ms"


def duration(seconds: float) -> str:
    """Seconds with one decimal, or minutes or hours with the next smaller unit."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


Scale = Callable[[float], float]


def _x_axis(
    values: Sequence[float], left: float, right: float, y: float, name: str, form: Callable[[float], str]
) -> tuple[Scale, str]:
    marks = ticks(min(values), max(values), 5)
    scale = _scale(marks[0], marks[-1], left + 6, right)
    body = [f'<line class="axis" x1="{left}" x2="{right + 4}" y1="{y}" y2="{y}"/>']
    for mark in marks:
        at = scale(mark)
        body.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{y}"/>' if left > 60 else "")
        body.append(_text(_tick(form(mark)), at, y + 12, "middle tick"))
    body.append(_text(name, (left + right) / 2, y + 29, "middle axis-name"))
    return scale, "".join(body)


def _y_axis(
    values: Sequence[float],
    left: float,
    right: float,
    top: float,
    bottom: float,
    form: Callable[[float], str],
) -> tuple[Scale, str]:
    marks = ticks(min(values), max(values), 4)
    scale = _scale(marks[0], marks[-1], bottom, top)
    body = []
    for mark in marks:
        at = scale(mark)
        body.append(f'<line class="grid" x1="{left}" x2="{right + 4}" y1="{at}" y2="{at}"/>')
        body.append(_text(_tick(form(mark)), left - 6, at, "end tick"))
    return scale, "".join(body)


def _tick(text: str) -> str:
    """A round number without its last zeros: `50.0 %` is `50 %` on an axis, and `7.500` is `7.5`."""
    return re.sub(r"\.(?!\d)", "", re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text))


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "champion":
        return f'<rect class="mark" x="{x - 4.5}" y="{y - 4.5}" width="9" height="9"/>'
    if kind == "final":
        return f'<path class="mark" d="M{x} {y - 6.5}L{x + 6.5} {y}L{x} {y + 6.5}L{x - 6.5} {y}Z"/>'
    return f'<circle class="mark" cx="{x}" cy="{y}" r="4.5"/>'


def _label(text: str, left: float, y: float) -> str:
    """A row's name, right-aligned before `left`, shortened to fit."""
    if _text_width(text) > left - 8:
        while text and _text_width(text + "…") > left - 8:
            text = text[:-1]
        text += "…"
    return _text(text, left - 8, y, "end")


def _text(text: str, x: float, y: float, kind: str) -> str:
    return f'<text class="{kind}" x="{round(x, 1)}" y="{round(y, 1)}" dy=".35em">{escape(text)}</text>'


def _label_width(labels: Sequence[str]) -> float:
    return min(max((_text_width(label) for label in labels), default=0) + 10, 0.6 * WIDTH)


def _text_width(text: str) -> float:
    """Estimated width at 12 units: wide (East Asian) letters are as wide as high, others about 0.6 of it."""
    return sum(12 if unicodedata.east_asian_width(letter) in "WF" else 7.2 for letter in text)


def _figure(title: str, told: str, height: float, body: Sequence[str], note: str = "") -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return (
        f"<figure><figcaption>{escape(title)}{small}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {round(height)}" role="img" aria-label="{escape(f"{title}: {told}")}">'
        f"{''.join(body)}</svg></figure>"
    )
