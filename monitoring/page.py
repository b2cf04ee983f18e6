"""The page that explains a decision to whoever is on call, in a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloomery.components.core.artifact import write_atomically
from bloomery.monitoring.drift import DriftReport, Signal

HEADLINES = {"retrain": "Retrain", "wait": "Waiting", "none": "No drift"}


def save(folder: Path, report: DriftReport, result: dict[str, Any]) -> None:
    """Write `decision.json` and `decision.md` to `folder`."""
    write_atomically(folder / "decision.json", json.dumps(result, indent=1, ensure_ascii=False))
    write_atomically(folder / "decision.md", render(report, result))


def render(report: DriftReport, result: dict[str, Any]) -> str:
    """Markdown: the decision and what to do, the signals with the drifted ones first, what is new, rows to
    look at."""
    lines = [
        f"# {HEADLINES[result['action']]}: {report.champion}",
        "",
        f"**{result['action']}** — {result['reason']}.",
        "",
        f"Window `{report.window}`: {report.n_current} rows, {report.first_time} to {report.last_time}, "
        f"against {report.n_reference} reference rows. Checked {result['checked']}.",
        "",
        *_started(result),
        "## Signals",
        "",
        "| signal | drifted | reference | window | measured | threshold |",
        "|---|---|---|---|---|---|",
        *(_row(signal) for signal in sorted(report.signals, key=lambda signal: not signal.drifted)),
        "",
        "`ks`: p-value, drifted below the threshold. `char_ngram_auc`: how well a classifier tells the two "
        "apart (0.5: not at all), drifted above it. Service signals do not count towards a retraining.",
        "",
    ]
    if report.novel_words:
        words = ", ".join(f"{_inline(word)} ({count})" for word, count in report.novel_words.items())
        lines += ["## Words that the reference does not have", "", f"{words} — word (rows).", ""]
    if report.examples:
        lines += [
            "## Rows least like the reference",
            "",
            "| score | time | prompt | response |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {e.score:.2f} | {e.time} | {_inline(e.prompt)} | {_inline(e.response)} |"
            for e in report.examples
        ]
        lines.append("")
    if result["quarantined"]:
        lines += ["## Files of the log that could not be read", ""]
        lines += [f"- {_inline(file)}: {_inline(reason)}" for file, reason in result["quarantined"].items()] + [""]
    if result["left_out"]:
        lines += ["## Rows of the log in no window", ""]
        lines += [f"- {reason}: {count}" for reason, count in result["left_out"].items()] + [""]
    return "\n".join(lines)


def _started(result: dict[str, Any]) -> list[str]:
    if result["started"] is None:
        return (
            [f"Nothing was started. The command would be `{result['command']}`.", ""]
            if result["command"]
            else []
        )
    started = result["started"]
    process = f" as process {started['pid']}" if started["pid"] else ""
    return [
        f"`{result['command']}` was {started['status']}{process} at {started['time']}; "
        f"its output is in `{started['log']}`. The candidate is promoted only if it passes the gate.",
        "",
    ]


def _row(signal: Signal) -> str:
    means = [f"{m:.3g}" if m is not None else "–" for m in (signal.mean_reference, signal.mean_current)]
    name = signal.name if signal.kind == "model" else f"{signal.name} (service)"
    drifted = "**yes**" if signal.drifted else "no"
    cells = [name, drifted, *means, f"{signal.method} {signal.statistic:.2g}", f"{signal.threshold:.2g}"]
    return f"| {' | '.join(cells)} |"


def _inline(text: str) -> str:
    """User text inside a table cell: one line, and nothing that Markdown or HTML would act on."""
    escaped = "".join("\\" + c if c in r"\`*_[]|#~" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
