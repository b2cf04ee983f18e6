"""Near-duplicate removal beside gaoya and datatrove: documents per second of whole programs on one machine, in one run.

    make bench-data BLOOMERY_DATA=/path/to/data

makes an environment for each peer, a corpus of natural sentences with planted near copies, and writes
`near_dedup.json`. Each program reads Parquet files, finds near-duplicates with 128 permutations on two cores and writes
what it keeps. Peers compare word 5-grams, which are a fifth as many as our character 5-grams; recall and precision are
over the planted pairs, each by the exact Jaccard similarity of the program's own shingles.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from bloomery.components.core import artifact
from bloomery.components.core.records import Document

HERE = Path(__file__).parent
NUM_DOCUMENTS, NUM_COPIES, NUM_DATATROVE = 150_000, 50_000, 20_000
ROUNDS = 3
THRESHOLD = 0.8
CORPORA = ("peps_eips", "wikitext2", "medquad", "msvc_errors_en_ko")


def main() -> int:
    """Run everything; 0 if the wanted ratios are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the corpora, such as $BLOOMERY_DATA")
    parser.add_argument("environments", type=Path, help="folder with the peers' virtual environments")
    parser.add_argument("--out", type=Path, default=HERE / "near_dedup.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts, copies = make_corpus(arguments.data)
        write(folder / "all", texts)
        write(folder / "part", texts[:NUM_DATATROVE])
        python = {name: arguments.environments / name / "bin" / "python" for name in ("gaoya", "datatrove")}
        programs = {
            "bloomery": ([sys.executable, HERE / "run_dedup.py"], "all"),
            "bloomery, signatures only": ([sys.executable, HERE / "run_dedup.py", "--signatures-only"], "all"),
            "gaoya": ([python["gaoya"], HERE / "peers" / "gaoya_near.py"], "all"),
            "datatrove": ([python["datatrove"], HERE / "peers" / "datatrove_near.py"], "part"),
        }
        results: dict[str, dict] = {name: {"seconds": []} for name in programs}
        for _ in range(ROUNDS):  # in turns, so that a busy minute of the machine meets all of them
            for name, (command, source) in programs.items():
                output = folder / f"{name}-kept"
                subprocess.run(["rm", "-rf", output], check=True)
                started = time.perf_counter()
                called = [*command[:2], folder / source, output, *command[2:]]
                subprocess.run(called, check=True, stderr=subprocess.DEVNULL)
                results[name]["seconds"].append(round(time.perf_counter() - started, 2))
        for name, (_, source) in programs.items():
            count = len(texts) if source == "all" else NUM_DATATROVE
            results[name]["documents_per_second"] = round(count / statistics.median(results[name]["seconds"]))
            if not (folder / f"{name}-kept" / "kept.json").is_file():
                continue
            kept = set(json.loads((folder / f"{name}-kept" / "kept.json").read_text()))
            words = name != "bloomery"
            results[name] |= {"documents": count, **score(texts[:count], copies, kept, words=words)}
    speed = {name: result["documents_per_second"] for name, result in results.items()}
    ratios = {name: round(speed["bloomery"] / speed[name], 2) for name in speed if name != "bloomery"}
    report = {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}",
        "ratios": ratios,
        "programs": results,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    wanted = {"gaoya": 1.5, "datatrove": 40, "bloomery, signatures only": 0.5}
    return 0 if all(ratios[name] >= ratio for name, ratio in wanted.items()) else 1


def make_corpus(data: Path, seed: int = 17) -> tuple[list[str], list[tuple[int, int]]]:
    """(documents of natural sentences in shuffled order, pairs (original, copy) of planted copies)."""
    rng = random.Random(seed)
    sentences = sorted({sentence for name in CORPORA for sentence in sentences_of(data / name)})
    vocabulary = sorted({word for sentence in sentences for word in sentence.split()})
    originals: list[list[str]] = []
    while len(originals) < NUM_DOCUMENTS:
        rng.shuffle(sentences)
        document: list[str] = []
        for sentence in sentences:
            document += sentence.split()
            if len(document) >= 150:
                originals.append(document)
                document = []
    originals = originals[:NUM_DOCUMENTS]
    documents = [(words, None) for words in originals]
    for _ in range(NUM_COPIES):
        parent = rng.randrange(NUM_DOCUMENTS)
        rate = rng.uniform(0, 0.12)
        edited = [rng.choice(vocabulary) if rng.random() < rate else word for word in originals[parent]]
        documents.append((edited, parent))
    order = list(range(len(documents)))
    rng.shuffle(order)
    place = {index: position for position, index in enumerate(order)}
    copies = [(place[parent], place[index]) for index, (_, parent) in enumerate(documents) if parent is not None]
    return [" ".join(documents[index][0]) for index in order], copies


def sentences_of(folder: Path) -> list[str]:
    """Sentences of 5 to 40 ASCII words of a folder of corpora."""
    text = []
    for file in sorted(folder.glob("*.xz")):
        with lzma.open(file, "rt", encoding="utf-8", newline="\n") as stream:
            for line in stream:
                text.append(str(json.loads(line)) if file.name.endswith("jsonl.xz") else line)
    parts = re.split(r"(?<=[.!?])\s+|\\n|\n", " ".join(text))
    return [part for part in parts if 5 <= len(part.split()) <= 40 and part.isascii()]


def write(folder: Path, texts: list[str]) -> None:
    """A document/1 artifact, one Parquet file a part; ids are positions."""
    ids = [f"{number:07}" for number in range(len(texts))]
    columns = [ids, texts, ids, *([value] * len(texts) for value in ("en", False, "", None))]
    artifact.write_rows(folder, "document/2", pa.table(columns, schema=Document.arrow()))


def score(texts: list[str], copies: list[tuple[int, int]], kept: set[str], *, words: bool) -> dict[str, float]:
    """Recall of planted pairs of the threshold or more, and share of the dropped that have such a partner."""
    partners: dict[int, list[int]] = {}
    for pair in copies:
        if max(pair) < len(texts):
            partners.setdefault(pair[0], []).append(pair[1])
            partners.setdefault(pair[1], []).append(pair[0])
    near = {
        (one, other)
        for one, others in partners.items()
        for other in others
        if one < other and jaccard(texts[one], texts[other], words=words) >= THRESHOLD
    }
    dropped = {index for index in range(len(texts)) if f"{index:07}" not in kept}
    found = sum(bool({one, other} & dropped) for one, other in near)
    # Copies of one original may be near each other too.
    family = {index: {index, *partners.get(index, [])} for index in dropped}
    relatives = {index: set().union(*(partners.get(member, []) for member in family[index])) for index in dropped}
    right = sum(
        any(jaccard(texts[index], texts[other], words=words) >= THRESHOLD for other in relatives[index] - {index})
        for index in dropped
    )
    return {
        "pairs": len(near),
        "recall": round(found / max(1, len(near)), 4),
        "dropped": len(dropped),
        "precision": round(right / max(1, len(dropped)), 4),
    }


def jaccard(left: str, right: str, *, words: bool) -> float:
    """Exact similarity of sets of shingles: words with single spaces, or characters without."""
    sets = []
    for text in (left.lower(), right.lower()):
        parts = text.split() if words else "".join(text.split())
        sets.append({tuple(parts[i : i + 5]) if words else parts[i : i + 5] for i in range(max(1, len(parts) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


if __name__ == "__main__":
    sys.exit(main())
