"""Turn questions with times into a prediction log, by really answering them with a model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from bloomery.components.core.artifact import file_digest
from bloomery.components.core.data import tables
from bloomery.components.core.data.chats import identity
from bloomery.components.core.data.files import list_files
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.records import content_id
from bloomery.components.core.scoring.tasks import Question, Template, ask
from bloomery.monitoring.answer import Answer
from bloomery.monitoring.engine import Row, Served, decode, take
from bloomery.monitoring.prediction_log import PredictionLog, parse_time

BATCH_ROWS = 64
"""Questions answered at once; the latency of a row is that of its batch divided by its rows."""


def replay(
    traffic: Path,
    model: Path,
    log: str,
    template: Template,
    *,
    model_name: str,
    model_version: str,
    max_new_tokens: int = 96,
) -> int:
    """Answer the rows of `traffic` in their order, and append to the prediction log at `log`, a folder or URI.

    A row needs `time` (ISO 8601) and the fields of `template`, whose answer becomes the label. Returns the
    rows written. Raises: DataError for a row that cannot be read, ModelError for an unusable checkpoint.
    """
    questions = list(_questions(traffic, template))
    served = Served(*checkpoints.load(model, on=checkpoints.device()), model_name, model_version)
    rows = [
        Row(served, served.prompt_tokens(asked.messages, asked.tools), max_new_tokens=max_new_tokens)
        for _, _, asked in questions
    ]
    target = PredictionLog(log)
    waiting, done = deque(rows), 0
    while waiting:
        started = time.perf_counter()
        batch = take(waiting, BATCH_ROWS)
        decode(batch)
        seconds = (time.perf_counter() - started) / len(batch)
        for row, (line, moment, asked) in zip(batch, questions[done:], strict=False):
            answer = Answer(row)
            answer.complete()
            key = content_id(model_name, model_version, str(line), identity(asked.messages, asked.tools))
            found = answer.prediction(key, moment, seconds, asked.messages)
            target.append([found.model_copy(update={"label": asked.reference})])
        done += len(batch)
    target.close()
    return target.num_written


def model_version_of(model: Path) -> str:
    """A version for a checkpoint that no registry knows: 12 hex digits over its weights."""
    return content_id(*(file_digest(file) for file in checkpoints.weight_files(model)))[:12]


def _questions(traffic: Path, template: Template) -> Iterator[tuple[int, datetime, Question]]:
    """(line, time, question with its reference) of each row."""
    for file in list_files(str(traffic)):
        for raw in tables.read_rows(file):
            where = f"{file} line {raw.line}"
            if raw.value is None:
                raise DataError(f"{where}: {raw.problem}")
            try:
                moment = parse_time(str(raw.value.get("time")))
            except ValueError:
                raise DataError(f"{where}: time is {raw.value.get('time')!r}, expected ISO 8601") from None
            asked = ask(template, raw.value)
            if asked.problem:
                shown = template.messages or template.prompt
                raise DataError(f"{where}: the template {shown!r} does not fit the row: {asked.problem}")
            yield raw.line, moment, asked
