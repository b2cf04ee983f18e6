"""Both data steps on real corpora: what is kept, what is dropped and why.

    python tests/benchmarks/real_data.py $BLOOMERY_DATA [--only CORPUS ...] [--show REASON]

writes `real_data.json` and prints the table of the steps' READMEs; `--show` prints the rows dropped for a reason, for a
person to read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from run_dedup import deduplicate

from bloomery.components.core.artifact import Shards, read_manifest, write_rows
from bloomery.components.core.data.files import list_files
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Source
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.data_curation.step import run as curate

HERE = Path(__file__).parent
CORPORA = {
    "peps_eips": [("peps.jsonl.xz", "{text}"), ("eips.jsonl.xz", "{text}")],
    "web_docs_ko": [("ko.jsonl.xz", "{text}"), ("en.jsonl.xz", "{text}")],
    "vs_docs_ko": [("ko.jsonl.xz", "{text}")],
    "msvc_errors_en_ko": [("raw_markdown.jsonl.xz", "{text}")],
    "neardup_doc_versions": [("pairs.jsonl.xz", "{old}"), ("pairs.jsonl.xz", "{new}")],
    "medquad": [("medquad.jsonl.xz", "{question}\n\n{answer}")],
    "wikitext2": [("*.txt.xz", "{text}")],
    "tldr_en_ko": [("aligned_examples.jsonl.xz", "{desc_ko}\n`{cmd_ko}`"), ("aligned_examples.jsonl.xz", "{desc_en}")],
    "gsm8k": [("train.jsonl.xz", "{question}\n\n{answer}"), ("test.jsonl.xz", "{question}\n\n{answer}")],
    "mbpp": [("mbpp.jsonl.xz", "{text}\n\n```python\n{code}\n```")],
    "hh_rlhf_harmless_test": [("test.jsonl.gz", "{chosen}")],
    "prompts_dated": [("prompts.jsonl.xz", "{prompt}")],
    "ifeval": [("input_data.jsonl", "{prompt}")],
    "self_instruct": [("*.jsonl", "{instruction}")],
    "truthfulqa": [("finetune_truth.jsonl.xz", "{prompt}")],
    "advbench": [("harmful_behaviors.csv", "{goal}")],
    "spider_dev": [("dev.jsonl.xz", "{question}\n\n```sql\n{query}\n```")],
    "advising_sql": [("advising.json.xz", "{sql}")],
    "wikisql": [("wikisql.json.bz2", "{sql}")],
    "clinc150": [("data_full.json.xz", "{train}")],
    "banking77": [("*.csv.xz", "{text}")],
    "klue_dev": [("klue-nli*.json.xz", "{premise}\n{hypothesis}"), ("klue-sts*.json.xz", "{sentence1}\n{sentence2}")],
    "ko_chatbot_songys": [("*.csv", "{Q}\n{A}")],
    "ko_hate_speech": [("*.tsv.xz", "{comments}")],
    "ko_question_pair": [("*.csv", "{question1}\n{question2}")],
    "ko_safety_naver": [("square_question*.xz", "{question}"), ("square_response*.xz", "{question}\n{response}")],
    "ldnoobw": [("[ek][no]", "{text}")],
    "nsmc_raw_dated": [("reviews.jsonl.xz", "{text}")],
}
"""Files and templates; the fields of advising_sql, wikisql and clinc150 are lists, and ldnoobw's files have no suffix:
their rows must come out as counted rejects."""


def main() -> int:
    """Run the corpora; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the corpora, such as $BLOOMERY_DATA")
    parser.add_argument("--only", nargs="+", default=list(CORPORA))
    parser.add_argument("--show", default="")
    arguments = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as scratch:  # compiled loops are loaded before anything is timed
        measure(arguments.data / "ifeval", CORPORA["ifeval"], Path(scratch), "")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as scratch:
            report[name] = measure(arguments.data / name, CORPORA[name], Path(scratch), arguments.show)
        found = report[name]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["dropped"].items()) or "–"
        told = " | ".join(
            [
                f"{found['rows']:,}",
                f"{found['curated']:,} ({100 * found['curated'] / found['rows']:.1f} %)",
                reasons,
                f"{found['unique']:,}" if found["curated"] else "–",
                ", ".join(f"{reason} {count:,}" for reason, count in found["copies"].items()) or "–",
                f"{found['seconds'][0]} + {found['seconds'][1]}",
            ]
        )
        print(f"| `{name}` | {told} |", flush=True)
    if arguments.only == list(CORPORA):
        (HERE / "real_data.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(folder: Path, files: list[tuple[str, str]], scratch: Path, show: str) -> dict:
    """Counts and CPU seconds of both steps on one corpus."""
    sources = [
        {"name": f"s{number}", "path": str(folder / pattern), "text": template}
        for number, (pattern, template) in enumerate(files)
    ]
    config = DataCurationConfig.model_validate({"sources": sources, "min_words": 2, "num_topics": 0})
    rows = [
        {"uri": uri, "name": source.name, "bytes": 0, "sha256": ""}
        for source in config.sources
        for uri in list_files(source.path)
    ]
    write_rows(scratch / "sources", "source/1", Source.table(rows))
    outputs = {name: scratch / name for name in ("documents", "rejects", "coverage")}
    started = cpu_seconds()
    try:
        curate(config, sources=scratch / "sources", **outputs)
    except DataError as error:  # nothing is left
        reason, count = re.search(r"dropped: (\w+) (\d+)", str(error)).groups()
        dropped = {reason: int(count)}
        return {"rows": int(count), "curated": 0, "dropped": dropped, "unique": 0, "copies": {}, "seconds": [0, 0]}
    seconds = [round(cpu_seconds() - started, 1)]
    if show:
        for table, _ in Shards(scratch / "rejects", "reject/1").tables():
            for row in table.to_pylist():
                if row["reason"] == show:
                    print(f"--- {row['source']} {row['reason']} {row['detail']}\n{row['text'][:300]}")
    started = cpu_seconds()
    deduplicate(scratch / "documents", scratch / "dedup", 0.7)
    seconds.append(round(cpu_seconds() - started, 1))
    curated, unique = read_manifest(scratch / "documents"), read_manifest(scratch / "dedup" / "kept")
    return {
        "rows": curated.rows_in,
        "curated": curated.rows,
        "dropped": dict(sorted(curated.dropped.items(), key=lambda item: -item[1])),
        "unique": unique.rows,
        "copies": unique.dropped,
        "seconds": seconds,
    }


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
