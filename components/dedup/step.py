"""Documents without copies of each other and without the questions that the gate will ask."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.components.core.artifact import ROWS_PER_SHARD, Reads, Writes, read_table, write_rows
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Reject
from bloomery.components.core.tasks import Tasks
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.contamination import Detector, Found, evaluation_items
from bloomery.components.dedup.near import Permutations, band_keys, candidate_pairs, jaccard_similarities
from bloomery.components.dedup.shingles import fold

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 500
"""Documents that a thread takes at once: their code points, 2 MB of 1,000 characters each, are memory that malloc
reuses; with 2,000 the pages were new each time (2.2 instead of 1.9 s for 200,000)."""
PAIRS_PER_BATCH = 2_000
"""Candidate pairs that a thread compares at once."""

Dropped = dict[int, tuple[str, str]]
"""(reason, detail) by index of the document."""


def run(
    config: DedupConfig,
    *,
    documents: Annotated[Path, Reads("document/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    kept: Annotated[Path, Writes("document/1")],
    duplicates: Annotated[Path, Writes("reject/1")],
) -> dict[str, float]:
    """Remove documents that hold an evaluation question, then exact copies, then near copies.

    Contamination goes first: a contaminated document must not take the place of its clean near copy.

    Reads:   documents (document/1), tasks (tasks/1): validation and every evaluation set
    Writes:  kept (document/1), duplicates (reject/1; `detail` names the survivor or the question, and the
             overlap)
    Returns: dedup/documents, contaminated, exact_duplicates, near_duplicates, candidate_pairs, similar_pairs,
             evaluation_items, evaluation_items_found, evaluation_items_too_short
    Raises:  DataError if no document is left.
    """
    table = read_table(documents, "document/1")
    items, num_short = evaluation_items(Tasks(tasks))
    permutations = Permutations.draw(config.jaccard_threshold, config.num_permutations, config.seed)
    sketch = _sketch(table["text"], Detector(items, config.contamination_overlap), permutations)
    rank = _rank(table)
    dropped = _contaminated(sketch)
    dropped |= _exact(table, sketch, rank, _standing(table, dropped))
    near, num_candidates, num_similar = _near(table, sketch, rank, _standing(table, dropped), config.jaccard_threshold)
    dropped |= near
    counts = Counter(reason for reason, _ in dropped.values())
    if len(dropped) == table.num_rows:
        raise DataError(
            f"all {table.num_rows} documents were dropped: {dict(counts)}; add documents, or keep the "
            "evaluation sets' own texts out of the sources"
        )
    write_rows(kept, "document/1", _kept(table, dropped), rows_in=table.num_rows, dropped=counts)
    write_rows(duplicates, "reject/1", Reject.table(list(_rejects(table, dropped))))
    num_kept = table.num_rows - len(dropped)
    logger.info("%d of %d documents kept; dropped: %s", num_kept, table.num_rows, dict(counts))
    metrics = {
        "documents": num_kept,
        "contaminated": counts["contaminated"],
        "exact_duplicates": counts["exact_duplicate"],
        "near_duplicates": counts["near_duplicate"],
        "candidate_pairs": num_candidates,
        "similar_pairs": num_similar,
        "evaluation_items": len(items),
        "evaluation_items_found": len({found.item.id for found in sketch.found.values()}),
        "evaluation_items_too_short": num_short,
    }
    return {f"dedup/{name}": float(value) for name, value in metrics.items()}


class Sketch(NamedTuple):
    """What is compared of each document."""

    digests: np.ndarray
    """128-bit digests of the comparable texts, uint64 of shape (documents, 2)."""
    keys: np.ndarray
    """MinHash bands, uint64 of shape (documents, bands)."""
    found: dict[int, Found]
    """The evaluation item that a document holds, by index of the document."""


def _sketch(texts: pa.ChunkedArray, detector: Detector, permutations: Permutations) -> Sketch:
    digests = np.empty((len(texts), 2), np.uint64)
    keys = np.empty((len(texts), permutations.num_bands), np.uint64)
    found: dict[int, Found] = {}

    def work(start: int) -> None:
        folded = fold(texts.slice(start, ROWS_PER_BATCH).combine_chunks())
        rows = range(len(folded.starts))
        hashed = b"".join(xxhash.xxh3_128_digest(folded.text(row)) for row in rows)
        digests[start : start + len(rows)] = np.frombuffer(hashed, np.uint64).reshape(-1, 2)
        keys[start : start + len(rows)] = band_keys(folded, permutations)
        found.update({start + row: item for row, item in detector.find(folded).items()})

    _in_threads(work, range(0, len(texts), ROWS_PER_BATCH))
    return Sketch(digests, keys, found)


def _rank(table: pa.Table) -> np.ndarray:
    """Who stays among copies: domain before general text, then the longest, then the lowest source and id."""
    keys = table.select(["general", "source", "id"]).append_column("length", pc.utf8_length(table["text"]))
    by = [("general", "ascending"), ("length", "descending"), ("source", "ascending"), ("id", "ascending")]
    rank = np.empty(table.num_rows, np.int64)
    rank[pc.sort_indices(keys, by).to_numpy()] = np.arange(table.num_rows)
    return rank


def _standing(table: pa.Table, dropped: Dropped) -> np.ndarray:
    """Indices of the documents that are not dropped."""
    return np.flatnonzero(~_is_dropped(table, dropped))


def _contaminated(sketch: Sketch) -> Dropped:
    return {
        index: ("contaminated", f"holds {item.id} of {item.task}/{item.split}, overlap {overlap:.2f}")
        for index, (item, overlap) in sorted(sketch.found.items())
    }


def _exact(table: pa.Table, sketch: Sketch, rank: np.ndarray, standing: np.ndarray) -> Dropped:
    """All documents of equal digest but the first by rank."""
    order = standing[np.lexsort((rank[standing], *sketch.digests[standing].T))]
    is_copy = (sketch.digests[order[1:]] == sketch.digests[order[:-1]]).all(axis=1)
    dropped: Dropped = {}
    survivor = -1
    for place in np.flatnonzero(is_copy).tolist():
        if order[place] not in dropped:
            survivor = order[place]
        dropped[int(order[place + 1])] = ("exact_duplicate", f"of {_id(table, survivor)}, Jaccard 1.00")
    return dropped


def _near(
    table: pa.Table, sketch: Sketch, rank: np.ndarray, standing: np.ndarray, threshold: float
) -> tuple[Dropped, int, int]:
    """Go by rank and keep a document unless one already kept is similar to it; with the candidates and similar pairs.

    So every document dropped has a verified near copy that stays. To keep one of each connected component
    instead would also drop the last of a long chain of versions, which may have nothing in common with the
    first.
    """
    pairs = standing[candidate_pairs(sketch.keys[standing])]
    similarities = np.empty(len(pairs))

    def work(start: int) -> None:
        part = pairs[start : start + PAIRS_PER_BATCH]
        members, places = np.unique(part, return_inverse=True)
        folded = fold(_take(table["text"], members))
        similarities[start : start + len(part)] = jaccard_similarities(folded, places.reshape(-1, 2))

    _in_threads(work, range(0, len(pairs), PAIRS_PER_BATCH))
    similar = similarities >= threshold
    better: dict[int, list[tuple[float, int, int]]] = {}
    for (left, right), jaccard in zip(pairs[similar].tolist(), similarities[similar].tolist(), strict=True):
        first, second = (left, right) if rank[left] < rank[right] else (right, left)
        better.setdefault(second, []).append((jaccard, -int(rank[first]), first))
    dropped: Dropped = {}
    for index in sorted(better, key=rank.__getitem__):
        stays = [candidate for candidate in better[index] if candidate[2] not in dropped]
        if stays:
            jaccard, _, survivor = max(stays)
            dropped[index] = ("near_duplicate", f"of {_id(table, survivor)}, Jaccard {jaccard:.2f}")
    return dropped, len(pairs), int(similar.sum())


def _kept(table: pa.Table, dropped: Dropped) -> Iterator[pa.Table]:
    stands = ~_is_dropped(table, dropped)
    for start in range(0, table.num_rows, ROWS_PER_SHARD):
        yield table.slice(start, ROWS_PER_SHARD).filter(pa.array(stands[start : start + ROWS_PER_SHARD]))


def _rejects(table: pa.Table, dropped: Dropped) -> Iterator[dict[str, Any]]:
    """reject/1 rows, in the order of the documents."""
    shown = table.select(["id", "source", "text"]).filter(pa.array(_is_dropped(table, dropped)))
    for row, index in zip(shown.to_pylist(), sorted(dropped), strict=True):
        reason, detail = dropped[index]
        yield {**row, "reason": reason, "detail": detail, "text": row["text"][:500]}


def _is_dropped(table: pa.Table, dropped: Dropped) -> np.ndarray:
    is_dropped = np.zeros(table.num_rows, np.bool_)
    is_dropped[np.fromiter(dropped, np.int64)] = True
    return is_dropped


def _take(texts: pa.ChunkedArray, indices: np.ndarray) -> pa.Array:
    """The texts at sorted `indices`; Arrow's own `take` would first make one array of all chunks."""
    ends = np.cumsum([len(chunk) for chunk in texts.chunks])
    parts = np.split(indices, np.searchsorted(indices, ends[:-1]))
    starts = ends - [len(chunk) for chunk in texts.chunks]
    taken = [chunk.take(part - start) for chunk, part, start in zip(texts.chunks, parts, starts, strict=True)]
    return pa.concat_arrays(taken)


def _id(table: pa.Table, index: int) -> str:
    return table["id"][int(index)].as_py()


def _in_threads(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `work` on every start, on each core: compiled code runs beside other threads."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(num_cores) as pool:
        for _ in pool.map(work, starts):
            pass
