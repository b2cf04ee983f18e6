"""Which of the documents that share a band of their sketches are copies: by their texts, pair by pair."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.components.core.artifact import Shards
from bloomery.components.core.data.near import (
    MAX_RECORD_SIMILARITY,
    NEIGHBOUR_SHARE,
    is_record_of_template,
    jaccard_similarities,
    neighbourhoods,
)
from bloomery.components.core.data.shingles import fold, ngram_lengths
from bloomery.components.core.parallel import map_ordered
from bloomery.components.dedup.config import DedupConfig

PAIRS_PER_BATCH = 2_000
"""Candidate pairs that a worker compares at once."""


def shingle_lengths(folded: Any, config: DedupConfig) -> np.ndarray:
    """Characters of the shingles of each of some folded texts."""
    return ngram_lengths(folded, config.shingle_characters, config.dense_shingle_characters)


def compared(
    old: Shards, new: Shards, pairs: np.ndarray, config: DedupConfig, scratch: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(Jaccard similarity of the shingles of each pair, float64, 0 where it is below the threshold; whether the pair
    are records of one template, bool).

    The texts are copied to a file in `scratch` in one pass over the shards, and read from there pair by pair: to find
    them in compressed shards each time would cost a pass for every block of pairs.
    """
    members, places = np.unique(pairs, return_inverse=True)
    with tempfile.TemporaryFile(dir=scratch) as file:
        lengths = [np.empty(0, np.int64)]
        for texts in texts_at(old, new, members):
            _, offsets, data = texts.cast(pa.large_string()).buffers()
            ends = np.frombuffer(offsets, np.int64)[: len(texts) + 1]
            lengths.append(np.diff(ends))
            file.write(memoryview(data or b"")[ends[0] : ends[-1]])
        file.flush()
        ends = np.cumsum(np.concatenate([[0], *lengths]))
        places = places.reshape(-1, 2)
        starts = range(0, len(pairs), PAIRS_PER_BATCH)
        batches = (_read_pairs(file, ends, places[at : at + PAIRS_PER_BATCH]) for at in starts)
        parts = list(map_ordered(partial(_compare, config), batches, releases_gil=True))
        similarities = np.concatenate([np.empty(0), *parts])
        near = neighbourhoods(places[np.flatnonzero(similarities)])
        similarities[similarities < config.jaccard_threshold] = 0
        told = np.flatnonzero((similarities >= config.jaccard_threshold) & (similarities < MAX_RECORD_SIMILARITY))
        starts = range(0, len(told), PAIRS_PER_BATCH)
        groups = (_read_groups(file, ends, places[told[at : at + PAIRS_PER_BATCH]], near) for at in starts)
        flags = list(map_ordered(partial(_are_records, config), groups, releases_gil=True))
    is_record = np.zeros(len(pairs), np.bool_)
    is_record[told] = np.concatenate([np.empty(0, np.bool_), *flags])
    return similarities, is_record


def texts_at(old: Shards, new: Shards, members: np.ndarray) -> Iterator[pa.Array]:
    """The texts at sorted `members`, known documents first, an array a shard."""
    for shards, first in ((old, 0), (new, old.num_rows)):
        for table, start in shards.tables():
            begin, past = np.searchsorted(members, (first + start, first + start + table.num_rows))
            here = members[begin:past]
            if len(here):
                yield table["text"].combine_chunks().take(here - first - start)


def _read_pairs(file: Any, ends: np.ndarray, places: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """(texts of a batch of pairs, their places among them)."""
    members, places = np.unique(places, return_inverse=True)
    return _read_texts(file, ends, members), places.reshape(-1, 2)


def _read_groups(
    file: Any, ends: np.ndarray, places: np.ndarray, near: dict[int, list[int]]
) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """(texts of a batch of pairs and of their neighbours, the pairs' places among them, where the neighbours of each
    text begin, their places)."""
    own = np.unique(places)
    members = np.unique(np.concatenate([own, *(near[index] for index in own.tolist())]))
    asked = set(own.tolist())
    groups = [near[index] if index in asked else [] for index in members.tolist()]
    starts = np.cumsum([0, *map(len, groups)])
    neighbours = np.searchsorted(members, np.array([other for group in groups for other in group], np.int64))
    return _read_texts(file, ends, members), np.searchsorted(members, places), starts, neighbours


def _read_texts(file: Any, ends: np.ndarray, members: np.ndarray) -> pa.Array:
    sizes = np.diff(ends)[members]
    data = b"".join(map(os.pread, repeat(file.fileno()), sizes.tolist(), ends[members].tolist()))
    offsets = np.cumsum(np.concatenate([[0], sizes]))
    return pa.LargeStringArray.from_buffers(len(members), pa.py_buffer(offsets), pa.py_buffer(data))


def _compare(config: DedupConfig, batch: tuple[pa.Array, np.ndarray]) -> np.ndarray:
    texts, pairs = batch
    folded = fold(texts)
    threshold = NEIGHBOUR_SHARE * config.jaccard_threshold
    return jaccard_similarities(folded, shingle_lengths(folded, config), pairs, threshold)


def _are_records(config: DedupConfig, batch: tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    texts, pairs, starts, neighbours = batch
    folded = fold(texts)
    return is_record_of_template(folded, shingle_lengths(folded, config), pairs, starts, neighbours)
