"""Documents without copies of each other and without the questions that the gate will ask.

Texts are read a shard at a time: once to sketch them, once more those that may be copies, once to write what stays.
What is held for a document in between is 250 bytes, whatever its length.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.components.core.artifact import Reads, Shards, Writer, Writes, read_manifest
from bloomery.components.core.data import near
from bloomery.components.core.data.near import Permutations, band_keys, candidate_pairs
from bloomery.components.core.data.shingles import fold
from bloomery.components.core.errors import DataError
from bloomery.components.core.parallel import map_ordered
from bloomery.components.core.records import Reject
from bloomery.components.core.scoring.contamination import Detector, Found, evaluation_items
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.dedup import verification
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.semantic import embed, similar_pairs

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 5_000
"""Documents that a worker sketches at once."""
ROWS_PER_FOLD = 500
"""Documents that stand as code points at once: 2 MB of 1,000 characters each are memory that malloc reuses; with 2,000
the pages were new each time (2.2 instead of 1.9 s for 200,000)."""

Dropped = dict[int, tuple[str, str]]
"""(reason, detail) by index of the document."""


def run(
    config: DedupConfig,
    *,
    documents: Annotated[Path, Reads("document/2")],
    tasks: Annotated[Path, Reads("tasks/1")],
    known: Annotated[Path, Reads("index/1")],
    encoder: Annotated[Path, Reads("encoder/1")],
    kept: Annotated[Path, Writes("document/2")],
    duplicates: Annotated[Path, Writes("reject/1")],
    index: Annotated[Path, Writes("index/1")],
) -> dict[str, float]:
    """Remove documents that hold an evaluation question, then exact copies, near copies and, if asked, paraphrases.

    Contamination goes first: a contaminated document must not take the place of its clean near copy.

    Reads:   documents (document/2), tasks (tasks/1): validation and every evaluation set; known (index/1): documents
             of earlier runs, of which copies go as well; encoder (model/1): for `semantic`, empty without
    Writes:  kept (document/2), duplicates (reject/1; `detail` names the survivor or the question, and the
             overlap), index (index/1; the known documents and those kept where `write_index` is set, else empty)
    Returns: dedup/documents, contaminated, exact_duplicates, near_duplicates, semantic_duplicates, known_documents,
             candidate_pairs, similar_pairs, template_pairs (similar, but records of one template), evaluation_items,
             evaluation_items_found, evaluation_items_too_short, lost_fraction_<source>
    Raises:  DataError if no document is left, or `known` was made with other settings.
    """
    old, new = Shards(known, "index/1"), Shards(documents, "document/2")
    _check_settings(known, config)
    items, num_short = evaluation_items(Tasks(tasks))
    sketch = _sketch_all(old, new, config, Detector(items, config.contamination_overlap))
    num_known, num_documents = old.num_rows, new.num_rows
    ids = pa.chunked_array(old.column("id").chunks + new.column("id").chunks, pa.string())
    rank = np.concatenate([np.arange(num_known), num_known + _rank(new, sketch.lengths[num_known:], config)])
    dropped = _contaminated(sketch)
    dropped |= _exact(ids, sketch, rank, _standing(rank, dropped))
    pairs = _pairs(sketch, num_known, _standing(rank, dropped))
    kept.parent.mkdir(parents=True, exist_ok=True)
    similarities, is_record = verification.compared(old, new, pairs, config, kept.parent)
    similar = (similarities >= config.jaccard_threshold) & ~is_record
    dropped |= _copies(ids, pairs[similar], similarities[similar], rank, "near_duplicate", "Jaccard")
    if config.semantic:
        standing = _standing(rank, dropped)
        embeddings = embed(verification.texts_at(old, new, standing), encoder, config.semantic.max_length)
        close, cosines = similar_pairs(embeddings, config.semantic.min_similarity, config.seed)
        is_new = standing[close[:, 1]] >= num_known
        dropped |= _copies(ids, standing[close[is_new]], cosines[is_new], rank, "semantic_duplicate", "cosine")
    counts = Counter(reason for reason, _ in dropped.values())
    if len(dropped) == num_documents:
        raise DataError(
            f"all {num_documents} documents were dropped: {dict(counts)}; add documents, or keep the "
            "evaluation sets' own texts out of the sources"
        )
    _write(new, num_known, dropped, kept, duplicates)
    _write_index(index, old, new, sketch, dropped, config)
    num_kept = num_documents - len(dropped)
    logger.info("%d of %d documents kept; dropped: %s", num_kept, num_documents, dict(counts))
    metrics = {
        "documents": num_kept,
        "contaminated": counts["contaminated"],
        "exact_duplicates": counts["exact_duplicate"],
        "near_duplicates": counts["near_duplicate"],
        "semantic_duplicates": counts["semantic_duplicate"],
        "known_documents": num_known,
        "candidate_pairs": len(pairs),
        "similar_pairs": similar.sum(),
        "template_pairs": is_record.sum(),
        "evaluation_items": len(items),
        "evaluation_items_found": len({found.item.id for found in sketch.found.values()}),
        "evaluation_items_too_short": num_short,
    }
    metrics |= _lost(new.column("source"), num_known, dropped)
    return {f"dedup/{name}": float(value) for name, value in metrics.items()}


def _lost(sources: pa.ChunkedArray, num_known: int, dropped: Dropped) -> dict[str, float]:
    """lost_fraction_<source>: share of each source's documents that were dropped; a large one is told with reasons."""
    names = pc.replace_substring_regex(sources, ":.*", "").to_pylist()
    total = Counter(names)
    lost: dict[str, Counter[str]] = {name: Counter() for name in total}
    for index, (reason, _) in dropped.items():
        lost[names[index - num_known]][reason] += 1
    for name, reasons in lost.items():
        if reasons.total() > near.MUCH * total[name]:
            share = reasons.total() / total[name]
            told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            copies = (reasons.total() - reasons["contaminated"]) / total[name]
            warned = f"; {100 * copies:.0f} % are copies: {near.TOLD}" if copies > near.MUCH else ""
            logger.warning(
                "the source %s loses %.0f %% of its %d documents: %s; `detail` in duplicates names for each "
                "the copy that stays, or the question that it holds%s",
                *(name, 100 * share, total[name], told, warned),
            )
    return {f"lost_fraction_{name}": reasons.total() / total[name] for name, reasons in sorted(lost.items())}


def _check_settings(known: Path, config: DedupConfig) -> None:
    """Documents signed with other shingles or permutations cannot be compared with these."""
    manifest = read_manifest(known)
    names = ("jaccard_threshold", "num_permutations", "shingle_characters", "dense_shingle_characters", "seed")
    other = [name for name in names if manifest.rows and manifest.config.get(name) != getattr(config, name)]
    if other:
        told = ", ".join(f"{name} {manifest.config.get(name)} (now {getattr(config, name)})" for name in other)
        raise DataError(f"dedup.known_index was made with {told}; set the same, or write the index again")


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


def _sketch_all(old: Shards, new: Shards, config: DedupConfig, detector: Detector) -> Sketch:
    """Of the known documents, then of the new ones."""
    permutations = Permutations.draw(config.jaccard_threshold, config.num_permutations, config.seed)
    start, total = old.num_rows, old.num_rows + new.num_rows
    whole = Sketch(
        np.empty(total, np.int64),
        np.empty((total, 2), np.uint64),
        np.empty((total, permutations.num_bands), np.uint64),
        {},
    )
    whole.lengths[:start] = old.column("length").to_numpy()
    for name, numbers in (("digest", whole.digests), ("keys", whole.keys)):
        flat = pc.list_flatten(old.column(name)).to_numpy().view(np.uint64)
        numbers[:start] = flat.reshape(start, numbers.shape[1])
    batches = (
        table["text"].slice(at, ROWS_PER_BATCH).combine_chunks()
        for table, _ in new.tables()
        for at in range(0, table.num_rows, ROWS_PER_BATCH)
    )
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
        keys.append(band_keys(folded, verification.shingle_lengths(folded, config), permutations))
        found |= {start + row: item for row, item in detector.find(folded).items()}
    lengths = pc.utf8_length(texts).to_numpy()
    return Sketch(lengths, np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2), np.concatenate(keys), found)


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


def _pairs(sketch: Sketch, num_known: int, standing: np.ndarray) -> np.ndarray:
    """Pairs of documents that share a band, int64 of shape (pairs, 2), those with one left document together.

    One of a pair is new: what is known was compared when it was new.
    """
    pairs = standing[candidate_pairs(sketch.keys[standing])]
    return pairs[pairs[:, 1] >= num_known]


def _copies(
    ids: pa.ChunkedArray, pairs: np.ndarray, similarities: np.ndarray, rank: np.ndarray, reason: str, measure: str
) -> Dropped:
    """Go by rank and keep a document unless one already kept is similar to it.

    So every document dropped has a verified copy that stays. To keep one of each connected component instead would
    also drop the last of a long chain of versions, which may have nothing in common with the first.
    """
    better: dict[int, list[tuple[float, int, int]]] = {}
    for (left, right), similarity in zip(pairs.tolist(), similarities.tolist(), strict=True):
        first, second = (left, right) if rank[left] < rank[right] else (right, left)
        better.setdefault(second, []).append((similarity, -int(rank[first]), first))
    dropped: Dropped = {}
    for index in sorted(better, key=rank.__getitem__):
        stays = [candidate for candidate in better[index] if candidate[2] not in dropped]
        if stays:
            similarity, _, survivor = max(stays)
            dropped[index] = (reason, f"of {ids[survivor]}, {measure} {similarity:.2f}")
    return dropped


def _write(new: Shards, num_known: int, dropped: Dropped, kept: Path, duplicates: Path) -> None:
    stay, go = Writer(kept, "document/2"), Writer(duplicates, "reject/1")
    for table, start in new.tables():
        told = [dropped.get(num_known + start + row) for row in range(table.num_rows)]
        is_dropped = pa.array([found is not None for found in told], pa.bool_())
        stay.add(table.filter(pc.invert(is_dropped)))
        shown = table.select(["id", "source", "text"]).filter(is_dropped).to_pylist()
        rows = [
            {**row, "reason": reason, "detail": detail, "text": row["text"][:500]}
            for row, (reason, detail) in zip(shown, filter(None, told), strict=True)
        ]
        go.add(Reject.table(rows))
    stay.close(rows_in=new.num_rows, dropped=Counter(reason for reason, _ in dropped.values()))
    go.close()


def _write_index(
    path: Path, old: Shards, new: Shards, sketch: Sketch, dropped: Dropped, config: DedupConfig
) -> None:
    writer = Writer(path, "index/1")
    if config.write_index:
        for table, _ in old.tables():
            writer.add(table)
        for table, start in new.tables():
            rows = [row for row in range(table.num_rows) if old.num_rows + start + row not in dropped]
            part = table.select(["id", "source", "text"]).take(rows)
            places = old.num_rows + start + np.array(rows, np.int64)
            part = part.append_column("length", pa.array(sketch.lengths[places]))
            for name, numbers in (("digest", sketch.digests), ("keys", sketch.keys)):
                values = numbers[places].view(np.int64)
                ends = np.arange(len(rows) + 1, dtype=np.int32) * values.shape[1]
                part = part.append_column(name, pa.ListArray.from_arrays(ends, values.reshape(-1)))
            writer.add(part)
    writer.close()
