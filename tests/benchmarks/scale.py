"""How curation and deduplication grow from 10,000 to 1,000,000 documents of 300 words, in time and memory.

    python tests/benchmarks/scale.py $BLOOMERY_DATA [--sizes 10000 100000 1000000] [--steps dedup data_curation]

Documents are shuffled real sentences, a quarter of them copies with 0 to 12 % of the words edited. Each step runs in a
process of its own as the pipeline runs it; its memory is the largest sum of the resident memory of that process and
its workers, sampled five times a second. `slope` is b of cost ~ n^b between the smallest and the largest size, with the
cost of 100 documents, which is the start, taken off; cost is CPU seconds, which other work on the machine lengthens
least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from near_dedup import CORPORA, sentences_of

from bloomery.components.core import artifact
from bloomery.components.core.records import Document, Source

HERE = Path(__file__).parent
WORDS, COPIES_OF_FOUR, START = 300, 1, 100
SECONDS_BETWEEN_SAMPLES = 0.2


def main() -> int:
    """Run every size; 0 if no slope is above 1.1 and no memory above 4 GiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the corpora, such as $BLOOMERY_DATA")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", nargs="+", default=["dedup", "data_curation"])
    parser.add_argument("--scratch", type=Path, default=None, help="folder for 10 GB of corpora")
    parser.add_argument("--out", type=Path, default=HERE / "scale.json")
    parser.add_argument("--run", nargs=2, metavar=("STEP", "FOLDER"), help="internal: run one step")
    arguments = parser.parse_args()
    if arguments.run:
        return run_step(arguments.run[0], Path(arguments.run[1]))
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}"
    report: dict = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"steps": {}}
    report["machine"] = machine
    for step in arguments.steps:
        rows = []
        for size in (START, *sorted(arguments.sizes)):
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
                write_corpus(step, Path(scratch), arguments.data, size)
                command = [sys.executable, __file__, str(arguments.data), "--run", step, scratch]
                rows.append({"documents": size, **measure(command)})
            print(step, rows[-1], flush=True)
        start, first, *_, last = (row["cpu_seconds"] for row in rows)
        slope = math.log((last - start) / (first - start)) / math.log(rows[-1]["documents"] / rows[1]["documents"])
        report["steps"][step] = {"sizes": rows, "slope": round(slope, 3)}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    good = all(
        found["slope"] <= 1.1 and max(row["peak_gib"] for row in found["sizes"]) <= 4
        for found in report["steps"].values()
    )
    return 0 if good else 1


def texts(data: Path, size: int, seed: int = 5) -> Iterator[list[str]]:
    """Batches of documents."""
    rng = random.Random(seed)
    sentences = sorted({sentence for name in CORPORA for sentence in sentences_of(data / name)})
    vocabulary = sorted({word for sentence in sentences for word in sentence.split()})
    made, recent = 0, []
    while made < size:
        batch = []
        for _ in range(min(10_000, size - made)):
            if recent and rng.random() < COPIES_OF_FOUR / 4:
                rate = rng.uniform(0, 0.12)
                words = [rng.choice(vocabulary) if rng.random() < rate else word for word in rng.choice(recent).split()]
            else:
                words = []
                while len(words) < WORDS:
                    words += rng.choice(sentences).split()
            batch.append(" ".join(words))
        made += len(batch)
        recent = batch[-2_000:]
        yield batch


def write_corpus(step: str, folder: Path, data: Path, size: int) -> None:
    """What the step reads."""
    if step == "data_curation":
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
            for batch in texts(data, size):
                stream.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in batch)
        row = {"uri": str(folder / "rows.jsonl"), "name": "rows", "bytes": 0, "sha256": ""}
        artifact.write_rows(folder / "sources", "source/1", Source.table([row]))
        return
    writer = artifact.Writer(folder / "documents", "document/2")
    number = 0
    row = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
    for batch in texts(data, size):
        writer.add(Document.table([{**row, "id": f"{number + i:016}", "text": text} for i, text in enumerate(batch)]))
        number += len(batch)
    writer.close()


def run_step(step: str, folder: Path) -> int:
    """Run a step on what `write_corpus` wrote."""
    if step == "dedup":
        from run_dedup import deduplicate

        deduplicate(folder / "documents", folder / "out", 0.8)
    else:
        from bloomery.components.data_curation.config import DataCurationConfig
        from bloomery.components.data_curation.step import run as curate

        outputs = {name: folder / "out" / name for name in ("documents", "rejects", "coverage")}
        config = DataCurationConfig.model_validate({"sources": [{"name": "rows", "path": str(folder)}]})
        curate(config, sources=folder / "sources", **outputs)
    return 0


def measure(command: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak resident GiB of a command and its workers."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = psutil.Popen(command)
    peak = 0
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), "peak_gib": round(peak / 2**30, 2)}


if __name__ == "__main__":
    sys.exit(main())
