"""The step as the pipeline runs it, on an artifact of documents, without evaluation items.

    python tests/benchmarks/run_dedup.py DOCUMENTS OUTPUT [--signatures-only]

writes the artifacts of the step and `kept.json`, the ids of what it keeps, under OUTPUT. `--signatures-only` stops when
every document is read, folded and signed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bloomery.components.core import artifact
from bloomery.components.core.records import Indexed, Prompt
from bloomery.components.core.scoring.contamination import Detector
from bloomery.components.dedup import step
from bloomery.components.dedup.config import DedupConfig


def deduplicate(documents: Path, folder: Path, threshold: float) -> list[str]:
    """Run the step; the ids of the documents that it keeps."""
    for name in ("tasks", "encoder"):
        (folder / name).mkdir(parents=True)
    (folder / "tasks" / "tasks.json").write_text("{}")
    artifact.write_rows(folder / "tasks", "prompt/2", Prompt.table([]))
    artifact.seal(folder / "tasks", "tasks/1")
    artifact.seal(folder / "encoder", "model/1")
    artifact.write_rows(folder / "known", "index/1", Indexed.table([]))
    inputs = {name: folder / name for name in ("tasks", "known", "encoder")}
    outputs = {name: folder / name for name in ("kept", "duplicates", "index")}
    step.run(DedupConfig(jaccard_threshold=threshold), documents=documents, **inputs, **outputs)
    return artifact.Shards(folder / "kept", "document/2").column("id").to_pylist()


def sign(documents: Path, folder: Path, threshold: float) -> None:
    """The part of the step that ends with the signatures."""
    artifact.write_rows(folder / "known", "index/1", Indexed.table([]))
    old, new = artifact.Shards(folder / "known", "index/1"), artifact.Shards(documents, "document/2")
    step._sketch_all(old, new, DedupConfig(jaccard_threshold=threshold), Detector([], 0.8))


if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:3])
    if "--signatures-only" in sys.argv:
        sign(source, output, 0.8)
    else:
        (output / "kept.json").write_text(json.dumps(deduplicate(source, output, 0.8)))
