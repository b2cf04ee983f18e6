"""gaoya: 16 bands of 8 over word 5-grams, the fastest measured alternative."""

import json
import os
import sys
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "2"
import gaoya  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

source, output = map(Path, sys.argv[1:])
output.mkdir()
table = pq.read_table(sorted(source.glob("*.parquet")))
texts = table["text"].to_pylist()
index = gaoya.minhash.MinHashStringIndex(
    hash_size=32,
    jaccard_threshold=0.8,
    num_bands=16,
    band_size=8,
    num_hashes=128,
    analyzer="word",
    lowercase=True,
    ngram_range=(5, 5),
)
index.par_bulk_insert_docs(list(range(len(texts))), texts)
dropped = set()
for number, found in enumerate(index.par_bulk_query(texts, return_similarity=False)):
    if number not in dropped:
        dropped.update(other for other in found if other != number)
keep = [number not in dropped for number in range(len(texts))]
pq.write_table(table.filter(keep), output / "kept.parquet", compression="zstd")
(output / "kept.json").write_text(json.dumps(table.filter(keep)["id"].to_pylist()))
