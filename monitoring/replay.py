"""Turn questions with times into a prediction log, by really answering them with a model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.components.core import tables
from bloomery.components.core.artifact import file_digest, write_atomically
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Prediction, content_id
from bloomery.components.core.tasks import Template, render
from bloomery.monitoring.snapshot import parse_time

BATCH_ROWS = 64
"""Questions answered at once; the latency of a row is that of its batch divided by its rows."""


def replay(
    traffic: Path,
    model: Path,
    log: Path,
    template: Template,
    *,
    model_name: str,
    model_version: str,
    max_new_tokens: int = 96,
) -> int:
    """Answer the rows of `traffic` in their order and write `log`, JSON lines of prediction/1.

    A row needs `time` (ISO 8601) and the fields of `template`, whose answer becomes the label. Returns the
    rows written. Raises: DataError for a row that cannot be read, ModelError for an unusable checkpoint.
    """
    from bloomery.components.core.generation import Generator

    rows = list(_questions(traffic, template))
    generator = Generator.load(model)
    lines = []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        started = time.perf_counter()
        answers = generator.generate([prompt for _, _, prompt, _ in batch], max_new_tokens=max_new_tokens)
        seconds = (time.perf_counter() - started) / len(batch)
        for (number, moment, prompt, label), (response, *_) in zip(batch, answers, strict=True):
            row = Prediction(
                id=content_id(model_name, model_version, str(number), prompt),
                time=moment,
                model_name=model_name,
                model_version=model_version,
                prompt=prompt,
                response=response,
                latency_seconds=round(seconds, 6),
                prompt_tokens=_num_tokens(generator, prompt),
                response_tokens=_num_tokens(generator, response),
                feedback=None,
                label=label,
            )
            lines.append(row.model_dump_json() + "\n")
    log.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(log, "".join(lines))
    return len(lines)


def model_version_of(model: Path) -> str:
    """A version for a checkpoint that no registry knows: 12 hex digits over its weights."""
    return content_id(*(file_digest(file) for file in sorted(model.glob("*.safetensors"))))[:12]


def _questions(traffic: Path, template: Template) -> Iterator[tuple[int, str, str, str]]:
    """(line, time, prompt, reference answer) of each row."""
    for file in tables.list_files(str(traffic)):
        for raw in tables.read_rows(file):
            where = f"{file} line {raw.line}"
            if raw.value is None:
                raise DataError(f"{where}: {raw.problem}")
            try:
                moment = parse_time(str(raw.value.get("time"))).isoformat()
            except ValueError:
                raise DataError(f"{where}: time is {raw.value.get('time')!r}, expected ISO 8601") from None
            yield (
                raw.line,
                moment,
                render(template.prompt, raw.value, where),
                render(template.answer, raw.value, where),
            )


def _num_tokens(generator: Any, text: str) -> int:
    return len(generator.tokenizer(text, add_special_tokens=False)["input_ids"])
