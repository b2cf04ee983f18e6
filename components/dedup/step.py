"""Documents without copies of each other and without the questions that the gate will ask.

Texts are read a shard at a time: once to sketch them, once more those that may be copies, once to write what stays.
What is held for a document in between is 250 bytes, whatever its length.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.components.core.artifact import Reads, Shards, Writer, Writes
from bloomery.components.core.errors import DataError
from bloomery.components.core.parallel import map_ordered
from bloomery.components.core.records import Reject
from bloomery.components.core.tasks import Tasks
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.contamination import Detector, Found, evaluation_items
from bloomery.components.dedup.near import Permutations, band_keys, candidate_pairs, jaccard_similarities
from bloomery.components.dedup.shingles import fold, ngram_lengths

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 5_000
"""Documents that a worker sketches at once."""
ROWS_PER_FOLD = 500
"""Documents that stand as code points at once: 2 MB of 1,000 characters each are memory that malloc reuses; with 2,000
the pages were new each time (2.2 instead of 1.9 s for 200,000)."""
PAIRS_PER_BATCH = 2_000
"""Candidate pairs that a worker compares at once."""
BLOCK_BYTES = 2**29
"""Text of candidate pairs that stands in memory at once."""

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
    shards = Shards(documents, "document/1")
    items, num_short = evaluation_items(Tasks(tasks))
    sketch = _sketch_all(shards, config, Detector(items, config.contamination_overlap))
    ids = shards.column("id")
    rank = _rank(shards, sketch.lengths, config)
    dropped = _contaminated(sketch)
    dropped |= _exact(ids, sketch, rank, _standing(rank, dropped))
    pairs = _pairs(sketch, _standing(rank, dropped))
    similarities = _similarities(shards, pairs, sketch.lengths, config)
    dropped |= _near(ids, pairs, similarities, rank, config.jaccard_threshold)
    counts = Counter(reason for reason, _ in dropped.values())
    if len(dropped) == len(ids):
        raise DataError(
            f"all {len(ids)} documents were dropped: {dict(counts)}; add documents, or keep the "
            "evaluation sets' own texts out of the sources"
        )
    _write(shards, dropped, kept, duplicates)
    num_kept = len(ids) - len(dropped)
    logger.info("%d of %d documents kept; dropped: %s", num_kept, len(ids), dict(counts))
    metrics = {
        "documents": num_kept,
        "contaminated": counts["contaminated"],
        "exact_duplicates": counts["exact_duplicate"],
        "near_duplicates": counts["near_duplicate"],
        "candidate_pairs": len(pairs),
        "similar_pairs": (similarities >= config.jaccard_threshold).sum(),
        "evaluation_items": len(items),
        "evaluation_items_found": len({found.item.id for found in sketch.found.values()}),
        "evaluation_items_too_short": num_short,
    }
    return {f"dedup/{name}": float(value) for name, value in metrics.items()}


class Sketch(NamedTuple):
    """What is kept in memory of each document."""

    lengths: np.ndarray
    """Characters of the texts, int64."""
    digests: np.ndarray
    """128-bit digests of the comparable texts, uint64 of shape (documents, 2)."""
    keys: np.ndarray
    """MinHash bands, uint64 of shape (documents, bands)."""
    found: dict[int, Found]
    """The evaluation item that a document holds, by index of the document."""


def _sketch_all(shards: Shards, config: DedupConfig, detector: Detector) -> Sketch:
    permutations = Permutations.draw(config.jaccard_threshold, config.num_permutations, config.seed)
    num_documents = int(shards.starts[-1])
    whole = Sketch(
        np.empty(num_documents, np.int64),
        np.empty((num_documents, 2), np.uint64),
        np.empty((num_documents, permutations.num_bands), np.uint64),
        {},
    )
    batches = (
        shards[shard]["text"].slice(start, ROWS_PER_BATCH).combine_chunks()
        for shard in range(len(shards))
        for start in range(0, shards[shard].num_rows, ROWS_PER_BATCH)
    )
    start = 0
    for part in map_ordered(partial(_sketch, config, permutations, detector), batches, releases_gil=True):
        past = start + len(part.lengths)
        whole.lengths[start:past], whole.digests[start:past], whole.keys[start:past] = part[:3]
        whole.found.update({start + row: found for row, found in part.found.items()})
        start = past
    return whole


def _sketch(config: DedupConfig, permutations: Permutations, detector: Detector, texts: pa.Array) -> Sketch:
    digests, keys, found = [], [], {}
    for start in range(0, len(texts), ROWS_PER_FOLD):
        folded = fold(texts.slice(start, ROWS_PER_FOLD))
        digests += [xxhash.xxh3_128_digest(folded.text(row)) for row in range(len(folded.starts))]
        keys.append(band_keys(folded, _shingle_lengths(folded, config), permutations))
        found |= {start + row: item for row, item in detector.find(folded).items()}
    lengths = pc.utf8_length(texts).to_numpy()
    return Sketch(lengths, np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2), np.concatenate(keys), found)


def _shingle_lengths(folded: Any, config: DedupConfig) -> np.ndarray:
    return ngram_lengths(folded, config.shingle_characters, config.dense_shingle_characters)


def _rank(shards: Shards, lengths: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Who stays among copies, by `survivor`, then by source and id; int64, the lowest stays."""
    source = shards.column("source")
    by: list[tuple[Any, str]] = []
    for rule in config.survivor:
        if rule == "domain":
            by.append((shards.column("general"), "ascending"))
        elif rule == "source":
            names = pc.replace_substring_regex(source, ":.*", "")
            place = pc.index_in(names, pa.array(config.source_priority))
            by.append((pc.fill_null(place, len(config.source_priority)), "ascending"))
        elif rule == "longest":
            by.append((pa.chunked_array([lengths]), "descending"))
        else:
            by.append((shards.column("time" if rule == "newest" else rule), "descending"))
    by += [(source, "ascending"), (shards.column("id"), "ascending")]
    keys = pa.table({str(number): column for number, (column, _) in enumerate(by)})
    order = pc.sort_indices(keys, [(str(number), direction) for number, (_, direction) in enumerate(by)])
    rank = np.empty(len(lengths), np.int64)
    rank[order.to_numpy()] = np.arange(len(lengths))
    return rank


def _standing(rank: np.ndarray, dropped: Dropped) -> np.ndarray:
    """Indices of the documents that are not dropped."""
    return np.flatnonzero(~_is_dropped(len(rank), dropped))


def _is_dropped(num_documents: int, dropped: Dropped) -> np.ndarray:
    is_dropped = np.zeros(num_documents, np.bool_)
    is_dropped[np.fromiter(dropped, np.int64)] = True
    return is_dropped


def _contaminated(sketch: Sketch) -> Dropped:
    return {
        index: ("contaminated", f"holds {item.id} of {item.task}/{item.split}, overlap {overlap:.2f}")
        for index, (item, overlap) in sorted(sketch.found.items())
    }


def _exact(ids: pa.ChunkedArray, sketch: Sketch, rank: np.ndarray, standing: np.ndarray) -> Dropped:
    """All documents of equal digest but the first by rank."""
    order = standing[np.lexsort((rank[standing], *sketch.digests[standing].T))]
    is_copy = (sketch.digests[order[1:]] == sketch.digests[order[:-1]]).all(axis=1)
    dropped: Dropped = {}
    survivor = -1
    for place in np.flatnonzero(is_copy).tolist():
        if order[place] not in dropped:
            survivor = order[place]
        dropped[int(order[place + 1])] = ("exact_duplicate", f"of {ids[int(survivor)]}, Jaccard 1.00")
    return dropped


def _pairs(sketch: Sketch, standing: np.ndarray) -> np.ndarray:
    """Pairs of documents that share a band, int64 of shape (pairs, 2), those with one left document together."""
    return standing[candidate_pairs(sketch.keys[standing])]


def _similarities(shards: Shards, pairs: np.ndarray, lengths: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Jaccard similarity of the shingles of each pair, float64."""
    similarities = np.empty(len(pairs))
    start = 0
    for block in _blocks(pairs, lengths):
        members, places = np.unique(block, return_inverse=True)
        texts, places = shards.take("text", members), places.reshape(-1, 2)
        batches = (_batch(texts, places[at : at + PAIRS_PER_BATCH]) for at in range(0, len(block), PAIRS_PER_BATCH))
        for part in map_ordered(partial(_compare, config), batches, releases_gil=True):
            similarities[start : start + len(part)] = part
            start += len(part)
    return similarities


def _blocks(pairs: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """`pairs` cut so that the texts of a block are BLOCK_BYTES at most, at four bytes a character."""
    if len(pairs):
        ends = np.cumsum(4 * lengths[pairs].sum(axis=1)) // BLOCK_BYTES
        yield from np.split(pairs, np.flatnonzero(np.diff(ends)) + 1)


def _batch(texts: pa.Array, places: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    members, places = np.unique(places, return_inverse=True)
    return texts.take(members), places.reshape(-1, 2)


def _compare(config: DedupConfig, batch: tuple[pa.Array, np.ndarray]) -> np.ndarray:
    texts, pairs = batch
    folded = fold(texts)
    return jaccard_similarities(folded, _shingle_lengths(folded, config), pairs)


def _near(
    ids: pa.ChunkedArray, pairs: np.ndarray, similarities: np.ndarray, rank: np.ndarray, threshold: float
) -> Dropped:
    """Go by rank and keep a document unless one already kept is similar to it.

    So every document dropped has a verified near copy that stays. To keep one of each connected component
    instead would also drop the last of a long chain of versions, which may have nothing in common with the
    first.
    """
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
            dropped[index] = ("near_duplicate", f"of {ids[survivor]}, Jaccard {jaccard:.2f}")
    return dropped


def _write(shards: Shards, dropped: Dropped, kept: Path, duplicates: Path) -> None:
    is_dropped = _is_dropped(int(shards.starts[-1]), dropped)
    stay, go = Writer(kept, "document/1"), Writer(duplicates, "reject/1")
    for shard, start in enumerate(shards.starts[:-1].tolist()):
        table = shards[shard]
        here = is_dropped[start : start + table.num_rows]
        stay.add(table.filter(pa.array(~here)))
        shown = table.select(["id", "source", "text"]).filter(pa.array(here)).to_pylist()
        told = (dropped[start + row] for row in np.flatnonzero(here).tolist())
        rows = [
            {**row, "reason": reason, "detail": detail, "text": row["text"][:500]}
            for row, (reason, detail) in zip(shown, told, strict=True)
        ]
        go.add(Reject.table(rows))
    stay.close(rows_in=len(is_dropped), dropped=Counter(reason for reason, _ in dropped.values()))
    go.close()
