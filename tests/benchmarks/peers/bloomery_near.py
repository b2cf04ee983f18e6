"""Ours: the step as the pipeline runs it."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from bloomery.components.core import artifact
from bloomery.components.core.records import Prompt
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.step import run

source, output = map(Path, sys.argv[1:])
tasks = output / "tasks"
tasks.mkdir(parents=True)
(tasks / "tasks.json").write_text("{}")
artifact.write_rows(tasks, "prompt/1", Prompt.table([]))
artifact.seal(tasks, "tasks/1")
run(
    DedupConfig(jaccard_threshold=0.8),
    documents=source,
    tasks=tasks,
    kept=output / "kept",
    duplicates=output / "duplicates",
)
kept = pq.read_table(sorted((output / "kept").glob("*.parquet")), columns=["id"])["id"].to_pylist()
(output / "kept.json").write_text(json.dumps(kept))
