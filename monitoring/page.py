"""The page that explains a decision to whoever is on call, in a minute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloomery.components.core.artifact import write_atomically
from bloomery.monitoring.drift import DriftReport, Example, Signal

HEADLINES = {"retrain": "Retrain", "wait": "Waiting", "none": "No drift", "failed": "Retraining failed to start"}


def save(folder: Path, report: DriftReport, result: dict[str, Any]) -> None:
    """Write `decision.json` and `decision.md` to `folder`."""
    write_atomically(folder / "decision.json", json.dumps(result, indent=1, ensure_ascii=False))
    write_atomically(folder / "decision.md", render(report, result))


def render(report: DriftReport, result: Mapping[str, Any]) -> str:
    """Markdown: the decision and what was done, what moved, old and new rows, every signal."""
    lines = [
        f"# {HEADLINES[result['action']]}: {report.champion}",
        "",
        f"**{result['action']}** — {_inline(result['reason'])}.",
        "",
        f"Window `{report.window}`: {report.n_current} rows, {report.first_time} to {report.last_time}, "
        f"against {report.n_reference} reference rows. Checked {result['checked']}.",
        "",
        *_started(report, result),
    ]
    if moved := [signal for signal in report.signals if signal.drifted]:
        lines += ["## What moved", "", *(f"- {_moved(signal)}" for signal in _ranked(moved)), ""]
    if report.novel_words:
        words = ", ".join(f"{_inline(word)} ({count})" for word, count in report.novel_words.items())
        lines += ["## Words that the reference does not have", "", f"{words} — word (rows).", ""]
    lines += _examples("New: rows least like the reference", report.examples)
    lines += _examples("Old: rows most like the reference", report.usual)
    lines += [
        "## Signals",
        "",
        "| signal | drifted | effect | reference | window | measured | threshold | n |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(signal) for signal in _ranked(report.signals)),
        "",
        "Effect: Kolmogorov-Smirnov distance, the share of rows that would have to change for no difference to be "
        "left. `ks`, `z`: p-value, significant below the threshold. `classifier`: share of the window among the "
        "tenth of all rows that looks newest, significant above it. Quality and service signals do not count towards "
        "a retraining.",
        "",
    ]
    for name, reason in report.not_compared.items():
        lines += [f"Not compared: {name}: {_inline(reason)}.", ""]
    if result["quarantined"]:
        lines += ["## Files of the log that could not be read", ""]
        lines += [f"- {_inline(file)}: {_inline(reason)}" for file, reason in result["quarantined"].items()] + [""]
    if result["left_out"]:
        lines += ["## Rows of the log in no window", ""]
        lines += [f"- {reason}: {count}" for reason, count in result["left_out"].items()] + [""]
    return "\n".join(lines)


def alert(report: DriftReport, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent to a webhook: `text` for people, and the same for programs."""
    words = ", ".join(list(report.novel_words)[:8])
    lines = [f"{HEADLINES[result['action']]}: {report.champion}: {result['reason']}."]
    lines += [f"- {_moved(signal)}" for signal in _ranked(report.signals)[:3] if signal.drifted]
    lines += [f"New words: {words}"] if words else []
    lines += [f"Page: {result['decision_page']}"]
    return {
        "text": "\n".join(lines),
        "action": result["action"],
        "window": report.window,
        "champion": report.champion,
        "drifted_signals": report.drifted,
        "effect": result["effect"],
        "decision_page": result["decision_page"],
    }


def _ranked(signals: list[Signal]) -> list[Signal]:
    """The drifted ones first, those of the model before the others, by effect."""
    return sorted(signals, key=lambda s: (not s.drifted, s.kind != "model", -s.effect, s.name))


def _moved(signal: Signal) -> str:
    name = signal.name.replace("_", " ")
    if signal.mean_reference is None or signal.mean_current is None:
        return f"{name}: at least {signal.effect:.0%} of the rows are unlike the reference"
    return f"{name}: {signal.mean_reference:.3g} before, {signal.mean_current:.3g} now (effect {signal.effect:.2f})"


def _examples(title: str, examples: list[Example]) -> list[str]:
    if not examples:
        return []
    rows = [f"| {e.score:.2f} | {e.time} | {_inline(e.prompt)} | {_inline(e.response)} |" for e in examples]
    return [f"## {title}", "", "| score | time | prompt | response |", "|---|---|---|---|", *rows, ""]


def _started(report: DriftReport, result: Mapping[str, Any]) -> list[str]:
    piece = f"The drifted slice has {report.num_drifted_rows} rows of {report.num_drifted_topics} topics."
    if result["started"] is None:
        if not result["command"]:
            return []
        return [f"Nothing was started. The command would be `{result['command']}`. {piece}", ""]
    started = result["started"]
    process = f" as process {started['pid']}" if started["pid"] else ""
    outcome = f" Its run is `{started['run']}`: {started['outcome'] or 'unfinished'}." if started["run"] else ""
    return [
        f"`{result['command']}` was {started['status']}{process} at {started['time']}; "
        f"its output is in `{started['log']}`.{outcome} {piece} The candidate is promoted only if it passes the gate.",
        "",
    ]


def _row(signal: Signal) -> str:
    means = [f"{m:.3g}" if m is not None else "–" for m in (signal.mean_reference, signal.mean_current)]
    name = signal.name if signal.kind == "model" else f"{signal.name} ({signal.kind})"
    drifted = "**yes**" if signal.drifted else "no"
    measured = f"{signal.method} {signal.statistic:.2g}"
    sizes = f"{signal.n_reference}, {signal.n_current}"
    cells = [name, drifted, f"{signal.effect:.2f}", *means, measured, f"{signal.threshold:.2g}", sizes]
    return f"| {' | '.join(cells)} |"


def _inline(text: str) -> str:
    """User text inside a table cell: one line, and nothing that Markdown or HTML would act on."""
    escaped = "".join("\\" + c if c in r"\`*_[]|#~" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
