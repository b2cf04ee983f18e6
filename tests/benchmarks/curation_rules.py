"""Curation rules beside datatrove's Gopher, C4 and FineWeb filters: documents per second and agreement of verdicts.

    python tests/benchmarks/curation_rules.py $BLOOMERY_DATA $ENVIRONMENTS

`ENVIRONMENTS/datatrove` is a virtual environment with datatrove. English documents of mixed lengths, a third of them
made bad in some way, are judged by both. The rules' speed is in CPU seconds of one core for texts already read, imports
not counted: datatrove's four filters one after the other, where a document that one drops costs nothing more; ours all
four on each. `program_seconds` are of whole programs that read Parquet and write what is kept, with two workers.
Verdicts are compared filter by filter on the whole document; `overall` is whether any of the four drops it.
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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.components.data_curation.quality import judge

HERE = Path(__file__).parent
NUM_DOCUMENTS, BATCH, ROUNDS = 4_000, 2_000, 3
SETS = ("gopher_repetition", "gopher", "c4", "fineweb")
ALSO = "c4_any_line"
"""Compared, but not timed: C4 without its rule of terminal punctuation."""
TEXTS = {
    "peps_eips/peps.jsonl.xz": "text",
    "peps_eips/eips.jsonl.xz": "text",
    "medquad/medquad.jsonl.xz": "answer",
    "msvc_errors_en_ko/raw_markdown.jsonl.xz": "text",
    "web_docs_ko/en.jsonl.xz": "text",
    "prompts_dated/prompts.jsonl.xz": "prompt",
}


def main() -> int:
    """Run everything; 0 if the wanted ratio and agreement are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the corpora, such as $BLOOMERY_DATA")
    parser.add_argument("environments", type=Path, help="folder with the peers' virtual environments")
    parser.add_argument("--out", type=Path, default=HERE / "curation_rules.json")
    arguments = parser.parse_args()
    texts = make_corpus(arguments.data)
    ours = {name: [verdict.reason for verdict in judge_all(texts, (name,))] for name in (*SETS, ALSO)}
    python = arguments.environments / "datatrove" / "bin" / "python"
    peer = HERE / "peers" / "datatrove_rules.py"
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "program")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = "".join(f"{json.dumps(text)}\n" for text in texts)
        (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
        write_parts(folder / "parts", texts)
        command = [python, peer, "rules", folder / "texts.jsonl", folder / "theirs.json"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        theirs = json.loads((folder / "theirs.json").read_text())
        their_program = wall_seconds([python, peer, "program", folder / "parts", folder / "their-output"])
        for _ in range(ROUNDS):
            started = time.process_time()
            judge_all(texts, SETS)
            seconds["ours"].append(time.process_time() - started)
            command = [sys.executable, __file__, "--program", folder / "parts", folder / "our-output"]
            seconds["program"].append(wall_seconds(command))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians |= {"chain": theirs["chain_seconds"], "their_program": their_program}
    report = make_report(texts, ours, theirs, medians)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if report["ratio"]["rules"] >= 20 and report["agreement"]["overall"] >= 0.995 else 1


def judge_all(texts: list[str], rule_sets: tuple[str, ...]) -> list:
    """Verdicts of ours in batches, one core."""
    found = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        found += judge(pa.array(part, pa.large_string()), ["en"] * len(part), rule_sets, 0, 10**9)
    return found


def run_program(source: str, output: str) -> None:
    """Ours as a whole program: read, judge with two threads, write what is kept."""

    def keep(file: Path) -> None:
        table = pq.read_table(file)
        verdicts = judge(table["text"].combine_chunks(), ["en"] * len(table), SETS, 0, 10**9)
        kept = table.filter(pa.array([not verdict.reason for verdict in verdicts]))
        pq.write_table(kept, Path(output) / file.name)

    Path(output).mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, sorted(Path(source).glob("*.parquet"))))


def wall_seconds(command: list) -> float:
    """Seconds that a program takes."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def write_parts(folder: Path, texts: list[str]) -> None:
    """Two Parquet files of id and text."""
    folder.mkdir()
    half = -(-len(texts) // 2)
    for part in range(2):
        rows = texts[part * half : (part + 1) * half]
        ids = [str(part * half + index) for index in range(len(rows))]
        pq.write_table(pa.table({"id": ids, "text": rows}), folder / f"{part}.parquet")


def make_report(texts: list[str], ours: dict, theirs: dict, seconds: dict[str, float]) -> dict:
    """What is written down."""
    agreement, dropped, differences = {}, {}, {}
    for name in (*SETS, ALSO):
        pairs = list(zip(ours[name], theirs["verdicts"][name], strict=True))
        agreement[name] = sum(bool(one) == bool(other) for one, other in pairs) / len(pairs)
        dropped[name] = sum(bool(other) for _, other in pairs) / len(pairs)
        wrong = Counter((one or "kept", other or "kept") for one, other in pairs if bool(one) != bool(other))
        differences[name] = {f"{one} / {other}": count for (one, other), count in wrong.most_common()}
    overall = [
        (any(ours[name][index] for name in SETS), any(theirs["verdicts"][name][index] for name in SETS))
        for index in range(len(texts))
    ]
    agreement["overall"] = sum(one == other for one, other in overall) / len(overall)
    dropped["overall"] = sum(other for _, other in overall) / len(overall)
    count = len(texts)
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}",
        "documents": count,
        "mean_words": round(sum(len(text.split()) for text in texts) / count),
        "rules_documents_per_cpu_second": {
            "bloomery": round(count / seconds["ours"]),
            "datatrove": round(count / seconds["chain"]),
        },
        "program_seconds": {
            "bloomery": round(seconds["program"], 2),
            "datatrove": round(seconds["their_program"], 2),
        },
        "ratio": {
            "rules": round(seconds["chain"] / seconds["ours"], 1),
            "program": round(seconds["their_program"] / seconds["program"], 1),
        },
        "agreement": {name: round(share, 5) for name, share in agreement.items()},
        "dropped_by_datatrove": {name: round(share, 3) for name, share in dropped.items()},
        "differences (ours / theirs)": differences,
    }


def make_corpus(data: Path, seed: int = 29) -> list[str]:
    """English documents and parts of documents, 60 to 3,000 words long, every third made bad."""
    rng = random.Random(seed)
    # Most technical pages break a rule of Gopher, most answers to questions of health none.
    pools = [
        list(_texts(data / name, field)) for name, field in TEXTS.items() for _ in range(6 if "medquad" in name else 1)
    ]
    with lzma.open(data / "wikitext2" / "valid.txt.xz", "rt", encoding="utf-8") as stream:
        pools += [re.split(r"(?m)^ = [^=]+ = $", stream.read())] * 3
    texts: list[str] = []
    while len(texts) < NUM_DOCUMENTS:
        text = rng.choice(rng.choice(pools))
        words = int(60 * 50 ** rng.random())
        places = [match.start() for match in re.finditer(r"\n|(?<=[.!?]) ", text)] or [0]
        start = rng.choice(places) if len(text) > 8 * words else 0
        end = next((place for place in places if place > start + 6 * words), len(text))
        text = text[start:end].strip()
        if text:
            texts.append(rng.choice(SPOILERS)(text, rng) if len(texts) % 3 == 2 else text)
    return texts


def _texts(file: Path, field: str) -> list[str]:
    with lzma.open(file, "rt", encoding="utf-8", newline="\n") as stream:
        rows = [json.loads(line) for line in stream]
    return [row[field] for row in rows if row.get("lang", "en") == "en" and row.get(field)]


def _repeat_lines(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    return "\n".join(lines + rng.choices(lines, k=1 + len(lines) // rng.randint(1, 6)))


def _repeat_words(text: str, rng: random.Random) -> str:
    words = text.split()
    start = rng.randrange(len(words))
    return text + " " + " ".join(words[start : start + rng.randint(2, 12)] * rng.randint(2, 12))


def _one_line(text: str, _: random.Random) -> str:
    return " ".join(text.split())


def _line_per_word(text: str, rng: random.Random) -> str:
    step, words = rng.randint(1, 6), text.split()
    return "\n".join(" ".join(words[at : at + step]) for at in range(0, len(words), step))


def _paragraphs_again(text: str, rng: random.Random) -> str:
    parts = text.split("\n\n")
    return "\n\n".join(parts + parts[: 1 + len(parts) // rng.randint(1, 5)])


def _line_ends(ending: str) -> Callable[[str, random.Random], str]:
    return lambda text, _: re.sub(r"[.!?]?(?=\n|$)", ending, text)


def _inserted(phrase: str) -> Callable[[str, random.Random], str]:
    def insert(text: str, rng: random.Random) -> str:
        words = text.split(" ")
        for _ in range(rng.randint(1, 1 + len(words) // 8)):
            words.insert(rng.randrange(len(words) + 1), phrase)
        return " ".join(words)

    return insert


SPOILERS: list[Callable[[str, random.Random], str]] = [
    _repeat_lines,
    _repeat_words,
    _one_line,
    _line_per_word,
    _paragraphs_again,
    *map(_line_ends, ("...", "…", "", ".")),
    *map(
        _inserted,
        ("#", "...", "{", "JavaScript", "lorem ipsum", "privacy policy", "12", "microspectrophotometer", "[3]"),
    ),
    lambda text, _: "\n".join(f"- {line}" for line in text.split("\n")),
    lambda text, _: re.sub(r"\b(the|be|to|of|and|that|have|with)\b", "la", text),
    lambda text, rng: " ".join(rng.sample(text.split(), len(text.split()))),
]


if __name__ == "__main__":
    sys.exit(run_program(*sys.argv[2:]) if sys.argv[1:2] == ["--program"] else main())
