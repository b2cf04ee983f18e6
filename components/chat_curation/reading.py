"""Rows of files as conversations with their personal data masked, and as the texts that copies are told by."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from bloomery.components.chat_curation.config import ChatCurationConfig
from bloomery.components.core.data import pii
from bloomery.components.core.data.chat_forms import read_chat, read_pair
from bloomery.components.core.data.chat_turns import Unfit
from bloomery.components.core.data.chats import ChatSource, Turn, as_text, changed, identity, said
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.records import content_id

ROWS_PER_BATCH = 1_000
"""Rows that a worker takes at once."""
CHARACTERS_PER_BATCH = 2**24
"""A batch ends early where its rows are long."""

SPOOLED = pa.schema(
    [
        ("source", pa.string()),
        ("place", pa.string()),
        ("is_pair", pa.bool_()),
        ("form", pa.string()),
        ("problem", pa.string()),
        ("detail", pa.string()),
        ("row", pa.large_string()),
        ("whole", pa.large_string()),
        ("frame", pa.large_string()),
        ("asked", pa.large_string()),
        ("answered", pa.large_string()),
    ]
)
"""A row between the passes: as JSON, whole for exact copies, and in the parts that near copies are told by."""

_NUMBER = re.compile(r"\d+")


class Batch(NamedTuple):
    """Rows of a source, and whether they are preference pairs."""

    source: ChatSource
    is_pair: bool
    rows: list[RawRow]


def batches(source: ChatSource, is_pair: bool, rows: Iterable[RawRow]) -> Iterator[Batch]:
    """The rows of a source in batches for workers."""
    batch: list[RawRow] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += len(str(row.value)) if len(row.raw) == 500 else len(row.raw)
        if len(batch) == ROWS_PER_BATCH or num_characters >= CHARACTERS_PER_BATCH:
            yield Batch(source, is_pair, batch)
            batch, num_characters = [], 0
    if batch:
        yield Batch(source, is_pair, batch)


def read(config: ChatCurationConfig, batch: Batch) -> tuple[pa.RecordBatch, Counter[str]]:
    """(rows as SPOOLED, number masked by kind)."""
    masked: Counter[str] = Counter()

    def mask(text: str) -> str:
        text, secrets = pii.mask_secrets(text, config.mask)
        text, personal = pii.mask(text, config.mask)
        masked.update(secrets + personal)
        return text

    rows = []
    for raw in batch.rows:
        place = f"{batch.source.name}:{_relative(raw.uri, batch.source.path)}#{raw.line}"
        told = {"source": batch.source.name, "place": place, "is_pair": batch.is_pair}
        try:
            found = _unfit(raw) or (_pair if batch.is_pair else _chat)(raw, place, mask)
        except Unfit as error:
            detail = "; ".join(filter(None, (error.detail, raw.hint)))
            found = {"problem": error.reason, "detail": detail, "row": raw.raw}
        if found.get("problem"):
            found["row"] = pii.mask(pii.mask_secrets(found["row"])[0])[0]
        rows.append({**dict.fromkeys(SPOOLED.names, ""), **told, **found})
    return pa.RecordBatch.from_pylist(rows, schema=SPOOLED), masked


def _unfit(raw: RawRow) -> dict[str, str]:
    return {"problem": raw.problem, "detail": raw.hint, "row": raw.raw} if raw.value is None else {}


def _chat(raw: RawRow, place: str, mask: Callable[[str], str]) -> dict[str, str]:
    found = read_chat(raw.value or {})
    messages = changed(found.messages, mask)
    facts = {"task": "", "origin": "given", "parent": place}
    row = {"id": content_id(identity(messages, found.tools)), "messages": messages, "tools": found.tools, **facts}
    return {"form": found.form, "row": _json(row), **_parts(messages, found.tools)}


def _pair(raw: RawRow, place: str, mask: Callable[[str], str]) -> dict[str, str]:
    found = read_pair(raw.value or {})
    messages, chosen, rejected = (changed(turns, mask) for turns in (found.messages, found.chosen, found.rejected))
    score = [] if found.score is None else [found.score]  # of one answer several, where several judged it
    key = content_id(*(identity(turns, found.tools) for turns in (messages, chosen, rejected)), *map(repr, score))
    sides = {"chosen": chosen, "rejected": rejected, "score": found.score}
    row = {"id": key, "task": "", "messages": messages, "tools": found.tools, **sides}
    parts = _parts([*messages, *chosen, *rejected], found.tools)
    whole = _json([messages, found.tools, chosen, rejected, *score])
    return {"form": found.form, "row": _json(row), **parts, "whole": whole}


def _parts(messages: list[Turn], tools: str) -> dict[str, str]:
    by_role: dict[str, list[str]] = {"system": [], "user": [], "tool": [], "assistant": []}
    for turn in messages:
        by_role[turn["role"]].append("\n".join(filter(None, (turn["reasoning"], said(turn)))))
    asked, answered = "\n".join(by_role["user"] + by_role["tool"]), "\n".join(by_role["assistant"])
    numbers = _NUMBER.findall(f"{asked}\n{answered}")
    return {
        "whole": f"{as_text(messages)}\n{tools}",
        "frame": _json([by_role["system"], tools, numbers]),
        "asked": asked,
        "answered": answered,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _relative(uri: str, root: str) -> str:
    """The place of a file inside its source, so that ids and digests are the same wherever the data lie."""
    base = re.split(r"[^/]*[*?[]", root.removeprefix("file://"))[0].rstrip("/")
    inside = uri.removeprefix("file://").removeprefix(base).lstrip("/")
    return inside if inside and inside != uri else PurePosixPath(uri).name
