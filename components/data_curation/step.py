"""Raw files in, readable documents out; every row that is not kept is written down with its reason."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa

from bloomery.components.core.artifact import Reads, Writes, read_table, write_rows
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Document, Reject, content_id
from bloomery.components.core.tables import SourceConfig, read_rows, select
from bloomery.components.data_curation import clean, language, pii, quality
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.data_curation.extract import document_text

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 5_000
"""Documents judged at once: Arrow's cost per call vanishes, and the measures of a batch stay small."""


def run(
    config: DataCurationConfig,
    *,
    sources: Annotated[Path, Reads("source/1")],
    documents: Annotated[Path, Writes("document/1")],
    rejects: Annotated[Path, Writes("reject/1")],
) -> dict[str, float]:
    """Keep the readable texts in wanted languages of the files of `sources`, with personal data masked.

    Reads:   sources (source/1): the files that preflight found
    Writes:  documents (document/1), rejects (reject/1): every row read stands in one of them
    Returns: data_curation/documents, rejects and rejects_<reason>, documents_<language>, masked_<kind>,
             boilerplate_lines, documents_per_second
    Raises:  DataError if no document is left.
    """
    started = time.perf_counter()
    files: dict[str, list[str]] = {}
    for row in read_table(sources, "source/1").select(["name", "uri"]).to_pylist():
        files.setdefault(row["name"], []).append(row["uri"])
    found = [row for source in config.sources for row in _rows(source, files.get(source.name, []))]
    texts, num_boilerplate_lines = clean.remove_boilerplate(
        pa.array([row["text"] for row in found], pa.string()),
        pa.array([row["name"] for row in found], pa.string()),
        config.boilerplate_share,
    )
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    masked: Counter[str] = Counter()
    for start in range(0, len(found), ROWS_PER_BATCH):
        part = slice(start, start + ROWS_PER_BATCH)
        verdicts = _verdicts(config, found[part], texts[part])
        for row, text, (code, reason, detail) in zip(found[part], texts[part], verdicts, strict=True):
            if reason:
                dropped.append(_reject(row, text, reason, detail))
            else:
                text, counts = _mask(text)
                masked += counts
                kept.append(_document(row, text, code))
    reasons = Counter(row["reason"] for row in dropped)
    codes = Counter(row["language"] for row in kept)
    if not kept:
        raise DataError(_nothing_left(config, len(found), reasons))
    write_rows(documents, "document/1", Document.table(kept), rows_in=len(found), dropped=reasons)
    write_rows(rejects, "reject/1", Reject.table(dropped))
    seconds = time.perf_counter() - started
    logger.info("%d of %d rows kept in %.1f s; dropped: %s", len(kept), len(found), seconds, dict(reasons))
    metrics = {
        "documents": len(kept),
        "rejects": len(dropped),
        "boilerplate_lines": num_boilerplate_lines,
        "documents_per_second": len(found) / seconds,
        **{f"rejects_{reason}": count for reason, count in sorted(reasons.items())},
        **{f"documents_{code}": count for code, count in sorted(codes.items())},
        **{f"masked_{kind}": masked[kind] for kind in pii.PLACEHOLDERS},
    }
    return {f"data_curation/{name}": float(value) for name, value in metrics.items()}


def _rows(source: SourceConfig, files: list[str]) -> Iterator[dict[str, Any]]:
    """The selected rows of a source with their cleaned text, or the reason why there is none."""
    for row in select(chain.from_iterable(map(read_rows, files)), source):
        text, problem = document_text(row, source)
        text = clean.clean(text)
        yield {
            "name": source.name,
            "place": f"{source.name}:{_relative(row.uri, source.path)}#{row.line}",
            "general": source.general,
            "text": text,
            "problem": problem or ("" if text else "empty"),
            "raw": row.raw,
        }


def _relative(uri: str, root: str) -> str:
    """The place of a file inside its source, so that ids and digests are the same wherever the data lie."""
    base = root.removeprefix("file://").split("*")[0].rstrip("/")
    inside = uri.removeprefix("file://").removeprefix(base).lstrip("/")
    return inside if inside and inside != uri else PurePosixPath(uri).name


def _verdicts(
    config: DataCurationConfig, rows: list[dict[str, Any]], texts: list[str]
) -> list[tuple[str, str, str]]:
    """(language, reason or '', detail) of each row."""
    codes = [language.detect(text, config.min_language_score) for text in texts]
    judged = quality.judge(pa.array(texts, pa.string()), codes, config.min_words, config.max_words)
    wanted = {*config.languages, language.UNDECIDED}
    verdicts = []
    for row, text, code, (keep, reason, detail) in zip(rows, texts, codes, judged, strict=True):
        if row["problem"]:
            verdicts.append((code, row["problem"], ""))
        elif not text:
            verdicts.append((code, "boilerplate", "nothing else in it"))
        elif code not in wanted:
            verdicts.append((code, "language", code))
        else:
            verdicts.append((code, "" if keep else reason, detail))
    return verdicts


def _mask(text: str) -> tuple[str, Counter[str]]:
    text, counts = pii.mask_secrets(text)

    def on_part(prose: str) -> str:
        masked, found = pii.mask(prose)
        counts.update(found)
        return masked

    return clean.on_prose(text, on_part), counts


def _document(row: dict[str, Any], text: str, code: str) -> dict[str, Any]:
    return {
        "id": content_id(text),
        "text": text,
        "source": row["place"],
        "language": code,
        "general": row["general"],
    }


def _reject(row: dict[str, Any], text: str, reason: str, detail: str) -> dict[str, Any]:
    # A reject is read by people: what it holds of somebody's data is masked there too.
    shown = pii.mask(pii.mask_secrets(text or row["raw"])[0])[0]
    return {
        "id": content_id(row["place"], text or row["raw"]),
        "source": row["place"],
        "reason": reason,
        "detail": detail,
        "text": shown[:500],
    }


def _nothing_left(config: DataCurationConfig, num_rows: int, reasons: Counter[str]) -> str:
    names = ", ".join(f"{source.name} ({source.path})" for source in config.sources)
    if not num_rows:
        return f"no rows in {names}; check `path`, `where` and `share` of the sources"
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return (
        f"all {num_rows} rows of {names} were dropped: {counts}; check `text` of the sources "
        "(which field holds it), `languages` and `min_words`"
    )
