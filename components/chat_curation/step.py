"""Files of chats and preference pairs in, conversations to learn from out; every row that is not kept is written down
with its reason.

Rows are read and masked once, and stand in a file then, from which they are sketched and written, so that memory does
not grow with their texts.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter, defaultdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from bloomery.components.chat_curation import copies
from bloomery.components.chat_curation.config import ChatCurationConfig
from bloomery.components.chat_curation.reading import SPOOLED, batches, read
from bloomery.components.core.artifact import Reads, Shards, Writer, Writes, read_table
from bloomery.components.core.data import chat_forms, near, pii
from bloomery.components.core.data.tables import read_source
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.parallel import map_ordered
from bloomery.components.core.records import Chat, Preference, Reject, content_id
from bloomery.components.core.scoring.contamination import Detector, evaluation_items
from bloomery.components.core.scoring.tasks import Tasks

logger = logging.getLogger(__name__)

MUCH = 0.1
"""Share of a source's rows whose loss is warned of."""


@declare(secrets=("HF_TOKEN",))
def run(
    config: ChatCurationConfig,
    *,
    sources: Annotated[Path, Reads("source/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    chats: Annotated[Path, Writes("chat/2")],
    preferences: Annotated[Path, Writes("preference/3")],
    rejects: Annotated[Path, Writes("reject/1")],
    seeds: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
) -> dict[str, float]:
    """Read the chats and pairs of the files of `sources`, mask personal data, and drop copies and what holds a question
    of an evaluation set.

    Reads:   sources (source/1: the files that preflight found), tasks (tasks/1), seeds (chat/2: passed on first, as
             they are)
    Writes:  chats (chat/2; those read have the origin `given`), preferences (preference/3), rejects (reject/1)
    Returns: chat_curation/chats, preferences, form_<form> (rows read in it), rejects, rejects_<reason>,
             kept_<source>, masked_<kind>
    Raises:  DataError if no row of a source is a conversation.
    """
    files: dict[str, list[str]] = {}
    for row in read_table(sources, "source/1").select(["name", "uri"]).to_pylist():
        files.setdefault(row["name"], []).append(row["uri"])
    items, _ = evaluation_items(Tasks(tasks))
    chats.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=chats.parent, prefix=".rows-") as spool:
        masked = _spool(config, files, spool)
        with pa.memory_map(spool.name) as mapped:
            rows = pa.ipc.open_file(mapped).read_all()
            forms = _tell_forms(config, rows)
            dropped = copies.find(config, rows, Detector(items, config.contamination_overlap))
            kept, reasons = _write(rows, dropped, seeds, {"chat": chats, "pair": preferences, "reject": rejects})
            del rows
    num_seeds = Shards(seeds, "chat/2").num_rows if seeds else 0
    metrics = {
        "chats": num_seeds + sum(kept[source.name] for source in config.chats),
        "preferences": sum(kept[source.name] for source in config.preferences),
        "rejects": reasons.total(),
        **{f"form_{form}": count for form, count in sorted(forms.items())},
        **{f"rejects_{reason}": count for reason, count in sorted(reasons.items())},
        **{f"kept_{source.name}": kept[source.name] for source in config.inputs},
        **{f"masked_{kind}": masked[kind] for kind in pii.PLACEHOLDERS},
    }
    return {f"chat_curation/{name}": float(value) for name, value in metrics.items()}


def _spool(config: ChatCurationConfig, files: dict[str, list[str]], spool: Any) -> Counter[str]:
    """Write every row, read and masked, to `spool`; the number masked by kind."""
    masked: Counter[str] = Counter()
    parts = chain.from_iterable(
        batches(source, is_pair, read_source(source, files.get(source.name, []), f"chat_curation: {source.name}"))
        for is_pair, group in ((False, config.chats), (True, config.preferences))
        for source in group
    )
    with pa.ipc.new_file(spool, SPOOLED) as writer:
        for batch, found in map_ordered(partial(read, config), parts):
            writer.write_batch(batch)
            masked += found
    spool.flush()
    return masked


def _tell_forms(config: ChatCurationConfig, rows: pa.Table) -> Counter[str]:
    """Rows by the form that they were read in; says of each file which forms it holds.

    Raises: DataError if a source has no conversation.
    """
    by_file: dict[str, Counter[str]] = {}
    problems: dict[str, Counter[str]] = {source.name: Counter() for source in config.inputs}
    first: dict[str, str] = {}
    read_of: Counter[str] = Counter()
    for batch in rows.select(["source", "place", "form", "problem", "detail"]).to_batches():
        for source, place, form, problem, detail in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if problem:
                problems[source][problem] += 1
                first.setdefault(source, f"; the first is {place}, {problem}" + (f": {detail}" if detail else ""))
            else:
                by_file.setdefault(place.rpartition("#")[0], Counter())[form] += 1
                read_of[source] += 1
    for file, forms in by_file.items():
        told = ", ".join(f"{count} {form}" for form, count in forms.most_common())
        logger.log(logging.WARNING if len(forms) > 1 else logging.INFO, "%s holds %s", file, told)
    empty = [source for source in config.inputs if not read_of[source.name]]
    if empty:
        told = (chat_forms.nothing_in(source, problems[source.name], first.get(source.name, "")) for source in empty)
        raise DataError("\n".join(f"chat_curation: {one}" for one in told))
    return sum(by_file.values(), Counter())


def _write(
    rows: pa.Table, dropped: copies.Dropped, seeds: Path | None, targets: dict[str, Path]
) -> tuple[Counter[str], Counter[str]]:
    """(rows kept by source, rows dropped by reason)."""
    chats, pairs = Writer(targets["chat"], Chat.SCHEMA), Writer(targets["pair"], Preference.SCHEMA)
    out = Writer(targets["reject"], Reject.SCHEMA)
    passed = Shards(seeds, "chat/2") if seeds else None
    for table, _ in passed.tables() if passed else ():
        chats.add(table)
    kept: Counter[str] = Counter()
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    start = 0
    for batch in rows.to_batches():
        made: dict[str, list[dict[str, Any]]] = {"chat": [], "pair": [], "reject": []}
        for index, row in enumerate(batch.to_pylist(), start):
            reason, detail = (row["problem"], row["detail"]) if row["problem"] else dropped.get(index, ("", ""))
            if reason:
                reasons[row["is_pair"]][reason] += 1
                lost[row["source"]][reason] += 1
                text = row["row"] if row["problem"] else row["whole"]
                told = {"id": content_id(row["place"], text), "source": row["place"], "reason": reason}
                made["reject"].append({**told, "detail": detail, "text": text[:500]})
            else:
                kept[row["source"]] += 1
                made["pair" if row["is_pair"] else "chat"].append(json.loads(row["row"]))
        start += batch.num_rows
        chats.add(Chat.table(made["chat"]))
        pairs.add(Preference.table(made["pair"]))
        out.add(Reject.table(made["reject"]))
    chats.close(dropped=reasons[False])
    pairs.close(dropped=reasons[True])
    out.close()
    _tell_losses(kept, lost)
    total = reasons[False] + reasons[True]
    num_copies = total["exact_duplicate"] + total["near_duplicate"]
    if num_copies > near.MUCH * rows.num_rows:
        logger.warning("%d of %d chats and pairs are copies: %s", num_copies, rows.num_rows, near.TOLD)
    return kept, total


def _tell_losses(kept: Counter[str], lost: dict[str, Counter[str]]) -> None:
    for source in sorted({*kept, *lost}):
        count = kept[source] + lost[source].total()
        level = logging.WARNING if lost[source].total() > MUCH * count else logging.INFO
        why = ", ".join(f"{number} {reason}" for reason, number in lost[source].most_common())
        logger.log(level, "%s: %d of %d rows kept%s", source, kept[source], count, f"; left out: {why}" if why else "")

