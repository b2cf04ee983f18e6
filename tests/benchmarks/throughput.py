"""What `pipelines/scaling.py` needs and scale.py does not tell: the size of documents, and a core's tokens a second.

    python tests/benchmarks/throughput.py $BLOOMERY_DATA

writes throughput.json beside it. Tokens are cut as `cpt` cuts them, on one core, of real English and Korean texts with
the tokenizer of SmolLM2; CPU seconds are those that other work on the machine lengthens least.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import subprocess
import tempfile
import time
from itertools import islice
from pathlib import Path

from scale import texts, write_corpus
from token_shards import CORPORA
from token_shards import texts as real_texts

DOCUMENTS, CHARACTERS = 2_000, 4_000_000


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the corpora, such as $BLOOMERY_DATA")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    data, out = vars(parser.parse_args()).values()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    told = {
        "commit": commit.stdout.strip(),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}",
        "tokenising": of_tokenising(data),
        "documents": of_documents(data),
    }
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1))


def of_documents(data: Path) -> dict[str, float]:
    """The bytes of a document of scale.py, and how many of them are stored for each."""
    num_bytes = sum(len(text.encode()) for batch in texts(data, DOCUMENTS) for text in batch)
    with tempfile.TemporaryDirectory() as folder:
        write_corpus("dedup", Path(folder), data, DOCUMENTS)
        stored = sum(file.stat().st_size for file in Path(folder, "documents").rglob("*.parquet"))
    return {"bytes_a_document": round(num_bytes / DOCUMENTS), "stored_bytes_a_byte": round(stored / num_bytes, 3)}


def of_tokenising(data: Path) -> dict[str, float]:
    """Tokens that a core makes in a second."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    from bloomery.components.core.modelling import token_shards

    with tempfile.TemporaryDirectory() as name:
        for file in (data / "tokenizers" / "smollm2").iterdir():
            plain = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            Path(name, file.name.removesuffix(".xz")).write_bytes(plain)
        tokenizer = AutoTokenizer.from_pretrained(name)
    given = [row["text"] for row in real_texts(data, *CORPORA)]
    batches = list(islice(token_shards.in_batches(given), CHARACTERS // token_shards.BATCH_CHARACTERS))
    started, tokens = time.process_time(), 0
    for batch in batches:
        rows = token_shards.whole_texts(tokenizer, batch)
        tokens += len(token_shards.encoded([(ids, None) for ids in rows]).ids)
    seconds = time.process_time() - started
    return {
        "characters": sum(len(text) for batch in batches for text in batch),
        "tokens": tokens,
        "cpu_seconds": round(seconds, 2),
        "tokens_a_core_second": round(tokens / seconds),
    }


if __name__ == "__main__":
    main()
