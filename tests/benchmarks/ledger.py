"""Score curation and dedup against the ledger of dirt that the quickstart generator planted.

    python -m bloomery.pipelines.quickstart --out /tmp/quickstart
    python tests/benchmarks/ledger.py /tmp/quickstart

Prints, per planted kind, how many were dealt with, and how many clean documents were lost; exits with 1 below the
wanted shares: 95 % of each kind, 98 % of the clean documents.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bloomery.components.core.artifact import read_table, seal, write_rows
from bloomery.components.core.data.chats import chat
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.tables import SourceConfig, read_rows
from bloomery.components.core.records import Indexed, Prompt, Source, content_id
from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.data_curation import step as data_curation
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.dedup import step as dedup
from bloomery.components.dedup.config import DedupConfig

WANTED, WANTED_CLEAN = 0.95, 0.98
COPIES = ("exact_copy", "near_copy", "spaces_dropped", "unicode_nfd")
INSIDE = ("boilerplate", "pii")
"""Dirt inside documents that are good without it."""


def main(data: Path) -> int:
    """Run both steps on the quickstart in `data` and print the scores; 0 if they reach what is wanted."""
    ledger = json.loads((data / "ledger.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.process_time()
        num_documents = curate(data, folder)
        curated = time.process_time()
        documents = by_place(folder / "documents", "document/2")
        deduplicate(data, folder)
        finished = time.process_time()
        kept = by_place(folder / "kept", "document/2")
        places = [*documents, *by_place(folder / "rejects", "reject/1")]
    scores, num_dealt = Counter(), Counter()
    for entry in ledger:
        kind = kind_of(entry)
        num_dealt[kind] += 1
        scores[kind] += is_dealt_with(entry, documents, kept)
    planted = {place(entry) for entry in ledger if entry["kind"] not in INSIDE}
    originals = {place(entry, "original_") for entry in ledger if entry["kind"] in COPIES}
    clean = [name for name in places if name not in planted | originals]
    num_kept = sum(name in kept for name in clean)
    for kind in sorted(num_dealt):
        print(f"{kind:24} {scores[kind]:5} of {num_dealt[kind]:5}  {scores[kind] / num_dealt[kind]:.3f}")
    print(f"{'clean documents kept':24} {num_kept:5} of {len(clean):5}  {num_kept / len(clean):.3f}")
    for name, seconds in (("data_curation", curated - started), ("dedup", finished - curated)):
        print(f"{name}: {seconds:.1f} CPU seconds, {num_documents / seconds:.0f} documents per CPU second")
    is_reached = [scores[kind] >= WANTED * count for kind, count in num_dealt.items() if kind != "near_copy 0.2"]
    return 0 if all(is_reached) and num_kept >= WANTED_CLEAN * len(clean) else 1


def curate(data: Path, folder: Path) -> int:
    """Run data_curation on documents and general text; the number of rows."""
    sources = [
        SourceConfig(name="shop", path=str(data / "documents")),
        SourceConfig(name="general", path=str(data / "general" / "text.jsonl"), general=True),
    ]
    files = [
        {"uri": uri, "name": source.name, "bytes": 0, "sha256": ""}
        for source in sources
        for uri in list_files(source.path)
    ]
    write_rows(folder / "sources", "source/1", Source.table(files))
    metrics = data_curation.run(
        DataCurationConfig(sources=sources),
        sources=folder / "sources",
        documents=folder / "documents",
        rejects=folder / "rejects",
        coverage=folder / "coverage",
    )
    return int(metrics["data_curation/documents"] + metrics["data_curation/rejects"])


def deduplicate(data: Path, folder: Path) -> None:
    """Run dedup against the questions and held-out documents of the quickstart."""
    rows = [(row.value["split"], row.value["question"]) for row in read_rows(str(data / "questions.jsonl"))]
    prompts = [task_row("questions", split, question, "1") for split, question in rows]
    texts = [row.value["text"] for row in read_rows(str(data / "documents_held_out.jsonl"))]
    prompts += [task_row("text", "test", "", text) for text in texts]
    tasks = {
        "questions": ("{question}", "exact", sorted({split for split, _ in rows})),
        "text": ("", "perplexity", ["test"]),
    }
    configs = {
        name: TaskConfig(
            role="domain",
            templates=[{"prompt": template, "answer": "{text}"}],
            verifier={"kind": kind},
            splits={split: {"path": "-"} for split in splits},
        ).model_dump(mode="json")
        for name, (template, kind, splits) in tasks.items()
    }
    write_rows(folder / "tasks", "prompt/2", Prompt.table(prompts))
    (folder / "tasks" / "tasks.json").write_text(json.dumps(configs), encoding="utf-8")
    seal(folder / "tasks", "tasks/1")
    write_rows(folder / "known", "index/1", Indexed.table([]))
    (folder / "encoder").mkdir()
    seal(folder / "encoder", "model/1")
    dedup.run(
        DedupConfig(),
        documents=folder / "documents",
        tasks=folder / "tasks",
        known=folder / "known",
        encoder=folder / "encoder",
        kept=folder / "kept",
        duplicates=folder / "duplicates",
        index=folder / "index",
    )


def task_row(task: str, split: str, prompt: str, reference: str) -> dict[str, Any]:
    """A prompt/2 row."""
    row = {"id": content_id(task, split, prompt, reference), "task": task, "split": split}
    return {**row, "messages": chat(prompt) if prompt else [], "tools": "", "reference": reference, "group": ""}


def by_place(path: Path, schema: str) -> dict[str, dict]:
    """Rows by `<source>:<file>#<line>`."""
    return {row["source"]: row for row in read_table(path, schema).to_pylist()}


def place(entry: dict, which: str = "") -> str:
    """Where a ledger entry lies, as documents name it."""
    return f"shop:{entry[f'{which}file']}#{entry[f'{which}line'] or 0}"


def kind_of(entry: dict) -> str:
    """Planted kind; near copies by the share of words edited."""
    rate = entry["details"].get("edit_rate")
    return entry["kind"] if rate is None else f"{entry['kind']} {rate:g}"


def is_dealt_with(entry: dict, documents: dict[str, dict], kept: dict[str, dict]) -> bool:
    """True if planted dirt is gone: the text inside a document, one of two copies, or the whole row."""
    here = place(entry)
    if entry["kind"] in INSIDE:
        return here not in documents or entry["text"] not in documents[here]["text"]
    if entry["kind"] in COPIES:
        return (here in kept) + (place(entry, "original_") in kept) == 1
    return here not in kept


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
