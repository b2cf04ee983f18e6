"""What `bloomery plan --scale` takes from measurements and sources, and what takes over at a bottleneck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bloomery.components.core import s3
from bloomery.components.core.modelling import cards, plan


@dataclass(frozen=True)
class Constant:
    """A number that was not computed."""

    name: str
    value: float
    unit: str
    source: str


_SCALE = "`tests/benchmarks/scale.json` (8582266), two cores of a shared virtual machine"
_HERE = "`tests/benchmarks/throughput.json` (94961fc), the same machine"
CURATION = Constant(
    "data_curation",
    954,
    "documents a core-second",
    f"{_SCALE}: 100,000 in 57.7 s, less 5.3 of the start; with 10,000 in 15.4 s it would be half",
)
DEDUP = Constant(
    "dedup",
    10_600,
    "documents a core-second",
    f"{_SCALE}: 1,000,000, a quarter of them copies, in 49.1 s, less 2.0 of the start",
)
DOCUMENT = Constant("a document", 2_000, "bytes of text", f"{_HERE}: English of 300 words")
TOKENISING = Constant("tokenising", 194_000, "tokens a core-second", f"{_HERE}: of SmolLM2, English and Korean texts")
STORED = Constant("documents as they are stored", 0.45, "bytes a byte of text", f"{_HERE}: Parquet")
HELD = Constant(
    "dedup, memory",
    1_050,
    "bytes a document, in one process",
    "`tests/benchmarks/scale.json` (8582266): 2.62 GiB at 1,000,000 documents, 0.93 at 100,000, less what the cache of "
    "texts holds (1 GiB, 0.19)",
)
CONNECTION = Constant(
    "a connection to the store",
    87.5e6,
    "bytes a second",
    "85 to 90 MB/s: Amazon S3 User Guide, performance design patterns; not measured here",
)
DISK = Constant(
    "disk of a pod, at most",
    30.72e12,
    "bytes",
    "8 x 3.84 TB of EC2's p5.48xlarge, the largest node in mind; the chain itself sets no limit",
)
CORE_PRICE = Constant(
    "a core", 0.0425, "USD an hour", "c5.2xlarge, us-east-1: 0.34 for 8 vCPU (EC2 Auto Scaling User Guide, an example)"
)
KEEPING = Constant(
    "what is kept on the store", 0.023, "USD a GB and month", "S3 Standard, us-east-1, the first 50 TB, July 2022"
)
OVER_NODES = Constant(
    "twice as many nodes",
    cards.OVER_NODES,
    "of a card's speed is left",
    "TorchTitan (arXiv 2410.06511), Llama 3.1 8B by FSDP2 on H100s: 5,762 tokens a second on each of 8 and 5,605 on "
    "each of 128, tables 1 and 3 of its benchmarks/llama3_h100_202412_torchtitan.md; drawn on beyond 128",
)
CONSTANTS = (CURATION, DEDUP, DOCUMENT, TOKENISING, STORED, HELD, CONNECTION, DISK, CORE_PRICE, KEEPING, OVER_NODES)
RATES = {"data_curation": CURATION, "dedup": DEDUP}
"""How fast the steps of data go through text, by name."""

RAY, NODE, JOB, NODES, NOTHING = "Ray", "torchrun", "TrainJob", "more nodes", "nothing here"
ENGINES = {
    RAY: "`RAY_ADDRESS`: the same batches on the cores of several nodes, with the same digests",
    NODE: "the cards of one node (`resources.accelerators`), each with all weights, or with a part of them by "
    "`resources.sharding: full`",
    JOB: "the same training over nodes, by Kubeflow Trainer (profile `multi-node`)",
    NODES: "of the same TrainJob, as long as the batch that they make together still teaches",
    NOTHING: "a pod holds and copies whole artifacts, dedup keeps its bands in one process, and weights are shared out "
    "by FSDP2 alone. Beyond that: text that was deduplicated before by an engine which shuffles (Spark, datatrove), "
    "as several sources of several runs, and tensor and pipeline parallelism (TorchTitan, Megatron-LM)",
}
"""What takes over, and what it is."""
AFTER = {1: NODE, 8: JOB, 64: NODES, 512: NOTHING}
"""What takes over where the time of so many cards is the bottleneck."""
NOT_MEASURED = (
    "No GPU: what a training takes of a card, its host and the network between nodes is computed.",
    "No store: a copy takes as long as Amazon's guide says. The launcher of Kubeflow Pipelines copies the artifacts of "
    "a task one file after the other (its backend/src/v2/objectstore/object_store.go), our own store "
    f"{s3.THREADS} at once; nothing overlaps with work.",
    "No corpus above a million documents, and no step of data on Ray at these sizes: cost is taken to grow with bytes.",
    "Nothing is taken out by curation and dedup, so what follows them is an upper bound.",
)


def of_card(card: Mapping[str, Any]) -> Iterator[Constant]:
    """What is taken of a card."""
    known, price = card["utilisation"] == plan.UTILISATION, card["price_per_hour"]
    yield Constant(card["name"], card["flops"], "operations a second", "its data sheet: 16 bits, dense")
    source = "Llama 3 on H100s: 38 to 43 % (arXiv 2407.21783, table 4)" if known else "given"
    yield Constant("utilisation", card["utilisation"], "of that", source)
    if price is not None:
        yield Constant("a card", price, "an hour", "given")
