"""Raw files in, readable documents out; every row that is not kept is written down with its reason.

Rows are gone through twice in batches: to take out and repair their text and to count the lines that texts of a source
share, then to judge and mask what is left without these lines. In between they stand in a file, so that memory does
not grow with the corpus.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.components.core.artifact import Reads, Writer, Writes, read_table, write_rows
from bloomery.components.core.data import pii
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import SourceConfig, read_source
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.parallel import map_ordered
from bloomery.components.core.records import Coverage, Document, Reject, content_id
from bloomery.components.data_curation import clean, language, learned, quality
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.data_curation.coverage import CoverageCounter
from bloomery.components.data_curation.extract import document_text

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 1_000
"""Rows that a worker takes at once: enough for the compiled rules, few enough to spread."""
CHARACTERS_PER_BATCH = 2**24
"""A batch ends early where its rows are long."""

MASKED_CHARACTERS = 10_000
"""Of a reject so much is masked before 500 characters of it are shown: the longest secret, a private key, has 8,000."""

SPOOLED = pa.schema(
    [
        ("name", pa.string()),
        ("place", pa.string()),
        ("time", pa.string()),
        ("general", pa.bool_()),
        ("text", pa.large_string()),
        ("problem", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),
    ]
)
"""A row between the two passes."""


@declare(secrets=("HF_TOKEN",))
def run(
    config: DataCurationConfig,
    *,
    sources: Annotated[Path, Reads("source/1")],
    documents: Annotated[Path, Writes("document/2")],
    rejects: Annotated[Path, Writes("reject/1")],
    coverage: Annotated[Path, Writes("coverage/1")],
) -> dict[str, float]:
    """Keep the readable texts in wanted languages of the files of `sources`, with personal data masked.

    Reads:   sources (source/1): the files that preflight found
    Writes:  documents (document/2), rejects (reject/1): every row read stands in one of them; coverage (coverage/1):
             what the documents are about
    Returns: data_curation/documents, rejects, rejects_<reason>, rejects_only_<reason> (rows that no other rule would
             have removed), documents_<language>, masked_<kind>, boilerplate_lines, documents_per_second; with
             `learned_quality` learned_<score> and learned_<score>_stderr over the folds
    Raises:  DataError if no document is left, or the examples of `learned_quality` cannot be learned from.
    """
    started = time.perf_counter()
    files: dict[str, list[str]] = {}
    for row in read_table(sources, "source/1").select(["name", "uri"]).to_pylist():
        files.setdefault(row["name"], []).append(row["uri"])
    model, scores = _learn(config, files)
    documents.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=documents.parent, prefix=".rows-") as spool:
        rows_in, boilerplate = _spool(config, files, spool)
        judge = partial(_judge, config, boilerplate, model)
        total = _write(map_ordered(judge, _spooled(spool)), documents, rejects, rows_in, config)
    kept = total.documents
    write_rows(coverage, "coverage/1", Coverage.table(total.coverage.rows(config.num_topics, config.seed)))
    seconds = time.perf_counter() - started
    logger.info("%d of %d rows kept in %.1f s; dropped: %s", kept, rows_in, seconds, dict(total.dropped))
    metrics = {
        "documents": kept,
        "rejects": total.dropped.total(),
        "boilerplate_lines": total.boilerplate_lines,
        "documents_per_second": rows_in / seconds,
        **{f"rejects_{reason}": count for reason, count in sorted(total.dropped.items())},
        **{f"rejects_only_{reason}": count for reason, count in sorted(total.dropped_only.items())},
        **{f"documents_{code}": count for code, count in sorted(total.languages.items())},
        **{f"masked_{kind}": total.masked[kind] for kind in pii.PLACEHOLDERS},
        **scores,
    }
    return {f"data_curation/{name}": float(value) for name, value in metrics.items()}


def _learn(config: DataCurationConfig, files: dict[str, list[str]]) -> tuple[learned.Model | None, dict[str, float]]:
    """(the classifier of `learned_quality`, its scores by name), (None, {}) where there is none."""
    wanted = config.learned_quality
    if wanted is None:
        return None, {}
    examples = {}
    for side in (wanted.good, wanted.bad):
        texts = (clean.clean(document_text(row, side).text) for row in _rows(side, files.get(side.name, [])))
        examples[side.name] = [text for text in texts if text]
    model = learned.train(examples[wanted.good.name], examples[wanted.bad.name], wanted.folds, config.seed)
    scores = {}
    for name, (mean, stderr) in model.scores.items():
        scores |= {f"learned_{name}": mean, f"learned_{name}_stderr": stderr}
    return model, scores


def _spool(
    config: DataCurationConfig, files: dict[str, list[str]], spool: Any
) -> tuple[int, dict[str, frozenset[int]]]:
    """Write the repaired text of every row to `spool`; (number of rows, boilerplate lines by name of the source)."""
    hashes: dict[str, list[np.ndarray]] = {source.name: [np.empty(0, np.uint64)] for source in config.sources}
    counts: Counter[str] = Counter()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    batches = (
        (source, batch) for source in config.sources for batch in _batches(_rows(source, files.get(source.name, [])))
    )
    with pa.ipc.new_file(spool, SPOOLED, options=options) as writer:
        for name, batch, lines in map_ordered(_read, batches):
            writer.write_batch(batch)
            hashes[name].append(lines)
            counts[name] += batch.num_rows
    spool.flush()
    return counts.total(), {
        name: clean.boilerplate_hashes(np.concatenate(found), counts[name], config.boilerplate_share)
        for name, found in hashes.items()
    }


def _rows(source: SourceConfig, files: list[str]) -> Iterator[RawRow]:
    return read_source(source, files, f"data_curation: the source {source.name}", [source.text])


def _batches(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    batch: list[RawRow] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += sum(len(value) for value in (row.value or {}).values() if isinstance(value, str))
        if len(batch) == ROWS_PER_BATCH or num_characters >= CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _read(item: tuple[SourceConfig, list[RawRow]]) -> tuple[str, pa.RecordBatch, np.ndarray]:
    """(name of the source, rows with their repaired text or the reason why there is none, edge line hashes)."""
    source, rows = item
    columns: list[tuple[Any, ...]] = []
    hashes: list[int] = []
    for row in rows:
        text, problem, detail = document_text(row, source)
        text = clean.clean(text)
        hashes += clean.edge_line_hashes(text)
        place = f"{source.name}:{_relative(row.uri, source.path)}#{row.line}"
        written = str((row.value or {}).get(source.time) or "")
        problem = problem or ("" if text else "empty")
        columns.append((source.name, place, written, source.general, text, problem, detail, row.raw))
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*columns, strict=True), SPOOLED, strict=True)]
    return source.name, pa.record_batch(arrays, schema=SPOOLED), np.array(hashes, np.uint64)


def _relative(uri: str, root: str) -> str:
    """The place of a file inside its source, so that ids and digests are the same wherever the data lie."""
    base = re.split(r"[^/]*[*?[]", root.removeprefix("file://"))[0].rstrip("/")
    inside = uri.removeprefix("file://").removeprefix(base).lstrip("/")
    return inside if inside and inside != uri else PurePosixPath(uri).name


def _spooled(spool: Any) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(spool.name) as file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


class Judged(NamedTuple):
    """What became of a batch."""

    documents: pa.Table
    rejects: pa.Table
    dropped_only: Counter[str]
    """Rows that nothing but this reason removes."""
    masked: Counter[str]
    boilerplate_lines: int
    coverage: CoverageCounter


def _judge(
    config: DataCurationConfig,
    boilerplate: dict[str, frozenset[int]],
    model: learned.Model | None,
    batch: pa.RecordBatch,
) -> Judged:
    rows = batch.to_pylist()
    num_lines = 0
    for row in rows:
        row["text"], removed = clean.remove_boilerplate(row["text"], boilerplate[row["name"]])
        num_lines += removed
    texts = [row["text"] for row in rows]
    codes = [language.detect(text, config.min_language_score) for text in texts]
    scores = None if model is None else learned.score(model, texts).tolist()
    verdicts = quality.judge(pa.array(texts), codes, config.quality_rules, config.min_words, config.max_words)
    kept, dropped = [], []
    dropped_only: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    coverage = CoverageCounter(config.wanted)
    for index, (row, code, verdict) in enumerate(zip(rows, codes, verdicts, strict=True)):
        score = None if scores is None else scores[index]
        reasons = _reasons(config, row, code, verdict, score)
        if reasons:
            dropped.append(_reject(row, *next(iter(reasons.items()))))
            dropped_only.update(reasons.keys() if len(reasons) == 1 else ())
        else:
            text, counts = _mask(row["text"], config.mask)
            masked += counts
            kept.append(
                {
                    "id": content_id(text),
                    "text": text,
                    "source": row["place"],
                    "language": code,
                    "general": row["general"],
                    "time": row["time"],
                    "quality": score,
                }
            )
            coverage.add([text], [code], [row["name"]])
    return Judged(Document.table(kept), Reject.table(dropped), dropped_only, masked, num_lines, coverage)


def _reasons(
    config: DataCurationConfig, row: dict[str, Any], code: str, verdict: quality.Verdict, score: float | None
) -> dict[str, str]:
    """Every reason to drop a row, with the measured value; the first is the one that it is counted by."""
    if row["problem"]:
        return {row["problem"]: row["detail"]}
    if not row["text"]:
        return {"boilerplate": "nothing else in it"}
    reasons = {} if code in (*config.languages, language.UNDECIDED) else {"language": code}
    reasons |= {reason: verdict.detail if reason == verdict.reason else "" for reason in verdict.broken}
    if config.learned_quality and score is not None and score < config.learned_quality.min_score:
        reasons["learned_quality"] = f"score={score:.3g}"
    return reasons


def _mask(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    text, counts = pii.mask_secrets(text, kinds)

    def on_part(prose: str) -> str:
        masked, found = pii.mask(prose, kinds)
        counts.update(found)
        return masked

    return clean.on_prose(text, on_part), counts


def _reject(row: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    # A reject is read by people: what it holds of somebody's data is masked there too.
    text = row["text"] or row["raw"]
    shown = pii.mask(pii.mask_secrets(text[:MASKED_CHARACTERS])[0])[0]
    return {
        "id": content_id(row["place"], text),
        "source": row["place"],
        "reason": reason,
        "detail": detail,
        "text": shown[:500],
    }


class Total:
    """Sums over the batches."""

    def __init__(self, config: DataCurationConfig) -> None:
        self.documents = self.boilerplate_lines = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_only: Counter[str] = Counter()
        self.masked: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.coverage = CoverageCounter(config.wanted)

    def add(self, judged: Judged) -> None:
        """Count one batch."""
        self.documents += judged.documents.num_rows
        self.boilerplate_lines += judged.boilerplate_lines
        self.dropped.update(judged.rejects["reason"].to_pylist())
        self.dropped_only += judged.dropped_only
        self.masked += judged.masked
        self.languages.update(judged.documents["language"].to_pylist())
        self.coverage.merge(judged.coverage)


def _write(
    parts: Iterable[Judged], documents: Path, rejects: Path, rows_in: int, config: DataCurationConfig
) -> Total:
    kept, dropped, total = Writer(documents, "document/2"), Writer(rejects, "reject/1"), Total(config)
    for judged in parts:
        kept.add(judged.documents)
        dropped.add(judged.rejects)
        total.add(judged)
    if not kept.rows:
        raise DataError(_nothing_left(config, rows_in, total.dropped))
    kept.close(rows_in=rows_in, dropped=total.dropped)
    dropped.close()
    return total


def _nothing_left(config: DataCurationConfig, num_rows: int, reasons: Counter[str]) -> str:
    names = ", ".join(f"{source.name} ({source.path})" for source in config.sources)
    if not num_rows:
        return f"no rows in {names}; check `path`, `where` and `share` of the sources"
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return (
        f"all {num_rows} rows of {names} were dropped: {counts}; check `text` of the sources "
        "(which field holds it), `languages` and `min_words`"
    )
