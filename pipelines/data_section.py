"""The part of a run's report that tells what the data steps kept, what they dropped and what the corpus holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from bloomery.components.core import artifact
from bloomery.pipelines import charts

if TYPE_CHECKING:
    from bloomery.pipelines.run_outputs import Output

MOST_BARS = 12
"""Bars of one chart of counts; the rest is summed in one more."""
MOST_HITS = 50
"""Documents with evaluation questions that are shown; all of them stand in the artifact."""
DIMENSIONS = {
    "language": "Documents by language",
    "source": "Documents by source",
    "length": "Documents by length in words",
    "topic": "Documents by topic, with its most telling words",
}


def read(outputs: Mapping[tuple[str, str], Output], finished: Mapping[str, Any]) -> dict[str, Any]:
    """Row counts of every data artifact, why rows were dropped, what the corpus covers, and leaked questions.

    `finished` holds the journal's event of each stage, with its metrics.
    """
    tables: list[Output] = []
    reasons: dict[str, Counter[str]] = {}
    for output in outputs.values():
        schema = output.manifest.schema_name
        if schema == "reject/1":
            told = _counts(output.path, ["reason"])
        elif schema in ("document/2", "chat/2", "prompt/2", "preference/3", "tasks/1"):
            told = Counter(output.manifest.dropped)
            tables.append(output)
        else:
            continue
        # A drop stands in the manifest of what was kept, and may stand among the rejects: count it once.
        reasons[output.stage] = reasons.get(output.stage, Counter()) | told
    kept = [charts.Bar(f"{o.stage}.{o.name}", o.manifest.rows, f"{o.manifest.rows:,}") for o in tables]
    pictures = [charts.bars("Rows kept by each step", kept)] if kept else []
    missing = []
    for schema, columns, title in (
        ("document/2", ["language", "general"], "Languages of the documents"),
        ("chat/2", ["origin"], "Where the chats come from"),
    ):
        last = next((output for output in reversed(tables) if output.manifest.schema_name == schema), None)
        if last and last.manifest.rows:
            pictures.append(_counted(title, _counts(last.path, columns), f"rows of {last.stage}.{last.name}"))
        else:
            missing.append(f"{title}: {'none are left' if last else 'no stage wrote any'}.")
    for stage, counts in reasons.items():
        if counts:
            note = f"{counts.total():,} rows, by reason"
            pictures.append(_counted(f"Why {stage} dropped rows", counts, note))
    alone = _metrics(finished, "data_curation/rejects_only_")
    if alone:
        pictures.append(_counted("Rows that one rule alone drops", alone, "no other rule would have dropped them"))
    coverage = _rows(outputs, "coverage", "coverage/1")
    for dimension, title in DIMENSIONS.items():
        counts = Counter({row["slice"]: row["documents"] for row in coverage if row["dimension"] == dimension})
        if counts:
            in_order = dimension == "length"
            pictures.append(_counted(title, counts, "after curation, before deduplication", in_order=in_order))
    leaked = [row for row in _rows(outputs, "duplicates", "reject/1") if row["reason"] == "contaminated"]
    return {
        "tables": tables,
        "charts": [Markup(picture) for picture in pictures],
        "missing": missing,
        "wanted": [row for row in coverage if row["dimension"] == "wanted"],
        "leaked": leaked[:MOST_HITS],
        "num_leaked": len(leaked),
    }


def _metrics(finished: Mapping[str, Any], start: str) -> Counter[str]:
    """The counts that begin with `start`, by what follows it, of the last stage that has any."""
    told = [event["metrics"] for event in finished.values() if any(name.startswith(start) for name in event["metrics"])]
    found = told[-1] if told else {}
    return Counter({name.removeprefix(start): int(value) for name, value in found.items() if name.startswith(start)})


def _rows(outputs: Mapping[tuple[str, str], Output], name: str, schema: str) -> list[dict[str, Any]]:
    """The rows of the last output of that name and schema; none where no stage left one."""
    named = [output for output in outputs.values() if (output.name, output.manifest.schema_name) == (name, schema)]
    return artifact.read_table(named[-1].path, schema).to_pylist() if named else []


def _counts(path: Path, columns: list[str]) -> Counter[str]:
    """Number of rows by the values of `columns`, read without the texts."""
    import pyarrow.parquet as pq

    table = pq.read_table(sorted(path.glob("part-*.parquet")), columns=columns)
    words = {True: "general", False: "domain", "": "(none)"}
    counted = table.group_by(columns).aggregate([([], "count_all")]).to_pylist()
    return Counter(
        {", ".join(words.get(row[name], row[name]) for name in columns): row["count_all"] for row in counted}
    )


def _counted(title: str, counts: Counter[str], note: str, *, in_order: bool = False) -> str:
    """A chart of counts, the largest first, or `in_order` of the counter."""
    total = counts.total()
    shown = list(counts.items()) if in_order else sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = shown[MOST_BARS:]
    if rest:
        shown = [*shown[:MOST_BARS], (f"{len(rest)} others", sum(count for _, count in rest))]
    bars = [charts.Bar(label, count, f"{count:,} ({100 * count / total:.0f} %)") for label, count in shown]
    return charts.bars(title, bars, note)
