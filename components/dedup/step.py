"""Documents without copies of each other and without the questions that the gate will ask."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core.artifact import Reads, Writes, read_table, write_rows
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Document, Reject
from bloomery.components.core.tasks import Tasks
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.contamination import Detector, evaluation_items
from bloomery.components.dedup.near import similar_pairs
from bloomery.components.dedup.shingles import comparable

logger = logging.getLogger(__name__)

Row = dict[str, Any]


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
    rows = read_table(documents, "document/1").to_pylist()
    metrics: dict[str, float] = {}
    clean, contaminated = _decontaminate(rows, Tasks(tasks), config.contamination_overlap, metrics)
    different, exact = _drop_exact(clean)
    survivors, near = _drop_near(different, config, metrics)
    dropped = contaminated + exact + near
    reasons = Counter(row["reason"] for row in dropped)
    if not survivors:
        raise DataError(
            f"all {len(rows)} documents were dropped: {dict(reasons)}; add documents, or keep the "
            "evaluation sets' own texts out of the sources"
        )
    write_rows(kept, "document/1", Document.table(survivors), rows_in=len(rows), dropped=reasons)
    write_rows(duplicates, "reject/1", Reject.table(dropped))
    logger.info("%d of %d documents kept; dropped: %s", len(survivors), len(rows), dict(reasons))
    metrics |= {"documents": len(survivors), "contaminated": len(contaminated)}
    metrics |= {"exact_duplicates": len(exact), "near_duplicates": len(near)}
    return {f"dedup/{name}": float(value) for name, value in metrics.items()}


def _decontaminate(
    rows: list[Row], tasks: Tasks, min_overlap: float, metrics: dict[str, float]
) -> tuple[list[Row], list[Row]]:
    items, num_short = evaluation_items(tasks)
    detector = Detector(items, min_overlap)
    clean, dropped, found_items = [], [], set()
    for row in rows:
        found = detector.find(row["text"])
        if found is None:
            clean.append(row)
        else:
            item = found.item
            found_items.add(item.id)
            detail = f"holds {item.id} of {item.task}/{item.split}, overlap {found.overlap:.2f}"
            dropped.append(_reject(row, "contaminated", detail))
    metrics["evaluation_items"] = len(items)
    metrics["evaluation_items_found"] = len(found_items)
    metrics["evaluation_items_too_short"] = num_short
    return clean, dropped


def _drop_exact(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    survivors: dict[str, Row] = {}
    for row in _by_preference(rows):
        survivors.setdefault(comparable(row["text"]), row)
    chosen = {id(row) for row in survivors.values()}
    dropped = [
        _reject(row, "exact_duplicate", f"of {survivors[comparable(row['text'])]['id']}, Jaccard 1.00")
        for row in rows
        if id(row) not in chosen
    ]
    return [row for row in rows if id(row) in chosen], dropped


def _drop_near(
    rows: list[Row], config: DedupConfig, metrics: dict[str, float]
) -> tuple[list[Row], list[Row]]:
    """Go by preference and keep a document unless one already kept is similar to it.

    So every document dropped has a verified near copy that stays. To keep one of each connected component
    instead would also drop the last of a long chain of versions, which may have nothing in common with the
    first.
    """
    ordered = _by_preference(rows)
    texts = [comparable(row["text"]) for row in ordered]
    pairs, num_candidates = similar_pairs(
        texts, config.jaccard_threshold, config.num_permutations, config.seed
    )
    better: dict[int, list[tuple[float, int]]] = {}
    for pair in pairs:
        better.setdefault(pair.right, []).append((pair.jaccard, -pair.left))
    dropped: dict[int, Row] = {}
    for index, row in enumerate(ordered):
        standing = [(jaccard, -left) for jaccard, left in better.get(index, ()) if -left not in dropped]
        if standing:
            jaccard, survivor = max(standing)
            detail = f"of {ordered[survivor]['id']}, Jaccard {jaccard:.2f}"
            dropped[index] = _reject(row, "near_duplicate", detail)
    gone = {id(ordered[index]) for index in dropped}
    metrics |= {"candidate_pairs": num_candidates, "similar_pairs": len(pairs)}
    return [row for row in rows if id(row) not in gone], list(dropped.values())


def _by_preference(rows: list[Row]) -> list[Row]:
    """Who stays among copies: domain before general text, then the longest, then the lowest source and id."""
    return sorted(rows, key=lambda row: (row["general"], -len(row["text"]), row["source"], row["id"]))


def _reject(row: Row, reason: str, detail: str) -> Row:
    return {
        "id": row["id"],
        "source": row["source"],
        "reason": reason,
        "detail": detail,
        "text": row["text"][:500],
    }
