"""datatrove: its four stages of MinHash deduplication, two workers."""

import json
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import JsonlWriter

if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:])
    output.mkdir()
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    halves = output / "input"
    halves.mkdir()
    import pyarrow.parquet as pq

    table = pq.read_table(sorted(source.glob("*.parquet")))
    for part in range(2):
        half = -(-table.num_rows // 2)
        pq.write_table(table.slice(part * half, half), halves / f"{part}.parquet")

    def reader():
        return ParquetReader(str(halves), text_key="text", id_key="id")

    def stage(name, *pipeline, tasks=2):
        LocalPipelineExecutor(
            list(pipeline), tasks=tasks, workers=2, logging_dir=str(output / "logs" / name), skip_completed=False
        ).run()

    stage("1", reader(), MinhashDedupSignature(output_folder=str(output / "signatures"), config=config))
    buckets = MinhashDedupBuckets(str(output / "signatures"), str(output / "buckets"), config=config)
    stage("2", buckets, tasks=16)
    stage("3", MinhashDedupCluster(str(output / "buckets"), str(output / "clusters"), config=config), tasks=1)
    stage("4", reader(), MinhashDedupFilter(str(output / "clusters")), JsonlWriter(str(output / "kept")))
    import gzip

    kept = [
        json.loads(line)["id"]
        for file in sorted((output / "kept").glob("*.gz"))
        for line in gzip.open(file, "rt", encoding="utf-8")
    ]
    (output / "kept.json").write_text(json.dumps(kept))
