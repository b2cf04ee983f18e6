"""Which chats are copies of others, or hold a question of an evaluation set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from bloomery.components.chat_curation.config import ChatCurationConfig
from bloomery.components.core.data.near import Permutations, band_keys, candidate_pairs, jaccard_similarities
from bloomery.components.core.data.shingles import Folded, fold, ngram_lengths
from bloomery.components.core.parallel import map_ordered
from bloomery.components.core.scoring.contamination import Detector, Found

NUM_PERMUTATIONS, SHINGLE_CHARACTERS, DENSE_SHINGLE_CHARACTERS = 128, 5, 3
"""As dedup's defaults, where they are measured."""
PAIRS_PER_BATCH = 2_000
"""Candidate pairs that are compared at once."""

Dropped = dict[int, tuple[str, str]]
"""(reason, detail) by index of the row."""


class Sketch(NamedTuple):
    """What is kept in memory of the rows, some 200 bytes each."""

    digests: np.ndarray
    """128-bit digests of the whole conversation without spaces and case, uint64 of shape (rows, 2)."""
    frames: np.ndarray
    """Digests of what near copies have to share exactly, uint64."""
    keys: np.ndarray
    """MinHash bands, uint64 of shape (rows, bands)."""
    found: dict[int, Found]
    """The evaluation item that a row holds."""


def find(config: ChatCurationConfig, rows: pa.Table, detector: Detector) -> Dropped:
    """The rows, SPOOLED, that go though they could be read; of copies the first stays."""
    sketch = _sketch_all(config, rows, detector)
    usable = np.array([problem == "" for problem in rows["problem"].to_pylist()], np.bool_)
    is_pair = np.array(rows["is_pair"].to_pylist(), np.bool_)
    dropped: Dropped = {
        index: ("contaminated", f"holds {item.id} of {item.task}/{item.split}, overlap {overlap:.2f}")
        for index, (item, overlap) in sorted(sketch.found.items())
        if usable[index]
    }
    first: dict[bytes, int] = {}
    for index in np.flatnonzero(usable).tolist():
        if index not in dropped:
            survivor = first.setdefault(sketch.digests[index].tobytes(), index)
            if survivor != index:
                dropped[index] = ("exact_duplicate", f"of {rows['place'][survivor]}")
    standing = np.array([i for i in np.flatnonzero(usable & ~is_pair).tolist() if i not in dropped], np.int64)
    pairs = standing[candidate_pairs(sketch.keys[standing])] if len(standing) > 1 else np.empty((0, 2), np.int64)
    pairs = pairs[sketch.frames[pairs[:, 0]] == sketch.frames[pairs[:, 1]]]
    better: dict[int, list[tuple[float, int]]] = {}
    for (left, right), similarity in zip(pairs.tolist(), _similarities(config, rows, pairs), strict=True):
        if similarity >= config.jaccard_threshold:
            better.setdefault(right, []).append((similarity, left))
    for index in sorted(better):
        # A chat goes only for one that stays: of a chain of versions the last may have little of the first.
        stays = [candidate for candidate in better[index] if candidate[1] not in dropped]
        if stays:
            similarity, survivor = max(stays, key=lambda candidate: (candidate[0], -candidate[1]))
            dropped[index] = ("near_duplicate", f"of {rows['place'][survivor]}, Jaccard {similarity:.2f}")
    return dropped


def _sketch_all(config: ChatCurationConfig, rows: pa.Table, detector: Detector) -> Sketch:
    permutations = Permutations.draw(config.jaccard_threshold, NUM_PERMUTATIONS, config.seed)
    digests, frames, keys = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)], []
    keys.append(np.empty((0, permutations.num_bands), np.uint64))
    found: dict[int, Found] = {}
    start = 0
    for part in map_ordered(partial(_sketch, permutations, detector), _batches(rows), releases_gil=True):
        found |= {start + index: item for index, item in part.found.items()}
        start += len(part.frames)
        digests.append(part.digests)
        frames.append(part.frames)
        keys.append(part.keys)
    return Sketch(np.concatenate(digests), np.concatenate(frames), np.concatenate(keys), found)


def _batches(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    return iter(rows.select(["whole", "frame", "asked", "answered"]).to_batches())


def _sketch(permutations: Permutations, detector: Detector, batch: pa.RecordBatch) -> Sketch:
    whole = fold(batch["whole"])
    digests = b"".join(xxhash.xxh3_128_digest(whole.text(row)) for row in range(batch.num_rows))
    frames = [xxhash.xxh3_64_intdigest(frame.encode()) for frame in batch["frame"].to_pylist()]
    both = zip(batch["asked"].to_pylist(), batch["answered"].to_pylist(), strict=True)
    said = fold(pa.array([f"{asked}\n{answered}" for asked, answered in both], pa.large_string()))
    keys = band_keys(said, _lengths(said), permutations)
    return Sketch(
        np.frombuffer(digests, np.uint64).reshape(-1, 2), np.array(frames, np.uint64), keys, detector.find(said)
    )


def _lengths(folded: Folded) -> np.ndarray:
    return ngram_lengths(folded, SHINGLE_CHARACTERS, DENSE_SHINGLE_CHARACTERS)


def _similarities(config: ChatCurationConfig, rows: pa.Table, pairs: np.ndarray) -> list[float]:
    """The lower of the Jaccard similarities of what both ask and of what both answer, for each pair."""
    starts = range(0, len(pairs), PAIRS_PER_BATCH)
    blocks = (pairs[at : at + PAIRS_PER_BATCH] for at in starts)
    told = map_ordered(partial(_compare, config.jaccard_threshold, rows), blocks, releases_gil=True)
    return [similarity for part in told for similarity in part]


def _compare(threshold: float, rows: pa.Table, pairs: np.ndarray) -> Any:
    members, places = np.unique(pairs, return_inverse=True)
    sides = []
    for name in ("asked", "answered"):
        column = rows[name]
        folded = fold(pa.array([column[index].as_py() for index in members.tolist()], pa.large_string()))
        sides.append(jaccard_similarities(folded, _lengths(folded), places.reshape(-1, 2), threshold))
    return np.minimum(*sides).tolist()
