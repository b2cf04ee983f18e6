"""Make the quickstart folder: databases, questions, documents, general text, traffic and the base model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from bloomery.components.core import scratch
from bloomery.pipelines.quickstart import corpus, documents, general, questions, safety, shop, traffic

DOING = "making the demo domain and its base model (49 s on two cores of a shared virtual machine)"
MARKER = "quickstart.json"
NUM_LEAKED_PER_SPLIT = {"test": corpus.NUM_LEAKED // 2, "validation": corpus.NUM_LEAKED // 2}


def prepare(out: Path, seed: int = 17) -> None:
    """Write the quickstart data and the base model to `out`; do nothing if they are there for this code and seed.

    Writes:  databases/, questions.jsonl, safety.jsonl, documents/, ledger.json, documents_held_out.jsonl, general/,
             traffic.jsonl, base_model/ (a transformers checkpoint) and, last, quickstart.json
    The folder is made beside `out` and moved there whole: an interrupted call leaves `out` as it was.
    """
    out = Path(out)
    marker = {"source_sha256": source_digest(), "seed": seed}
    if is_complete(out, marker):
        return
    with scratch.beside(out) as made:
        if is_complete(out, marker):  # another process has made it meanwhile
            return
        write_data(made, seed)
        from bloomery.pipelines.quickstart.base_model import train_base_model

        train_base_model(made / "general", made / "base_model", seed)
        _write_marker(made, marker)
        if out.exists():
            shutil.rmtree(out)
        os.replace(made, out)


def is_complete(out: Path, marker: dict) -> bool:
    """Return whether `out` was finished with exactly this `marker` (source digest and seed)."""
    try:
        return json.loads((out / MARKER).read_text(encoding="utf-8")) == marker
    except (OSError, ValueError):
        return False


def source_digest() -> str:
    """Return the sha256 over this package's own source files and the optimiser's, names included."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    muon = package.parents[1] / "components" / "core" / "modelling" / "muon.py"
    for path in [*sorted(package.glob("*.py")), muon]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_data(out: Path, seed: int) -> None:
    """Write everything but the base model under `out`: seconds, standard library only, same bytes for a seed."""
    shop.write_databases(out / "databases", seed)

    splits, rest = questions.make_splits(seed)
    _write_rows(out / "questions.jsonl", (q.row(split) for split, dealt in splits.items() for q in dealt))
    asked = {questions.normalised(q.text) for dealt in splits.values() for q in dealt}
    _write_rows(out / "traffic.jsonl", traffic.make_traffic(rest, asked, seed))

    _write_rows(out / "safety.jsonl", safety.make_safety(seed))

    pages, held_out = documents.make_documents(seed)
    leaked = [(split, q) for split, count in NUM_LEAKED_PER_SPLIT.items() for q in splits[split][:count]]
    ledger = corpus.write_corpus(out / "documents", pages, leaked, seed)
    (out / "ledger.json").write_text(
        json.dumps(ledger, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    _write_rows(
        out / "documents_held_out.jsonl", ({"text": d.text, "language": d.language} for d in held_out)
    )

    text, text_held_out = general.make_text(seed)
    _write_rows(out / "general" / "text.jsonl", text)
    _write_rows(out / "general" / "text_held_out.jsonl", text_held_out)
    _write_rows(out / "general" / "skills.jsonl", general.make_skills(seed))


def _write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_marker(folder: Path, marker: dict) -> None:
    unfinished = folder / f"{MARKER}.part"
    unfinished.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / MARKER)
