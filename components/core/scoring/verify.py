"""Is an answer right? One pure function a kind of verifier; each returns (score in [0, 1], reason)."""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import field_validator

from bloomery.components.core.config import Config, LocalPath
from bloomery.components.core.data.text_metrics import TextMetric, sentence_score
from bloomery.components.core.scoring.numbers import last_number
from bloomery.components.core.scoring.refusal import is_refusal

REFUSAL_REFERENCES = ("refuse", "answer")
"""What an evaluation set of the verifier `refusal` asks a model to do."""


class VerifierConfig(Config):
    """How an answer is taken out of a response and compared with the reference."""

    kind: Literal["exact", "numeric", "regex", "label", "sql_execution", "perplexity", "refusal"] | TextMetric
    """`exact`: equal text; `numeric`: equal last numbers, however they are written (1,036 · $521 · −4 · 3/4 · 50%);
    `regex`: the reference is a pattern that the answer matches; `label`: equal text out of a closed set, which the
    references of an evaluation set are; `sql_execution`: equal rows on every database; `perplexity`: no answer, the
    reference is scored; `refusal`: the reference is `refuse` or `answer`, and the response does that (a reference in
    other words, as training has them, is a model's response, and asks for what it does itself); `chrf`, `bleu`,
    `rouge_1`, `rouge_2`, `rouge_l`: nearness of the texts, in [0, 1]."""
    extract: str = ""
    """Regular expression of the answer in a text: of its last match the first group that took part, or without groups
    the whole. It is applied to responses and to references alike, such as `#### 1,036` at the end of a solution; a
    reference in which it finds nothing is taken whole (a response is then wrong). `regex` and `refusal` take
    references as they are. Empty: the whole text."""
    ignore_case: bool = False
    """Compare text without case."""
    tolerance: float = 1e-6
    """Relative tolerance of `numeric`."""
    databases: list[LocalPath] = []
    """SQLite files for `sql_execution`, also on `s3://`; an answer must be right on all: on one, a wrong query may give
    the right rows."""
    timeout_seconds: float = 2.0
    """Time box of one query on one database."""
    tokenizer: Literal["13a", "intl", "char", "ko-mecab"] = "intl"
    """`bleu`'s, by sacreBLEU's names; all keep Korean. `intl`: words, with the punctuation of every script apart;
    `13a`: that of the English papers; `char`: characters; `ko-mecab`: Korean morphemes (pip install
    'sacrebleu[ko]')."""

    @field_validator("extract")
    @classmethod
    def _extract_is_a_pattern(cls, extract: str) -> str:
        if problem := pattern_problem(extract):
            raise ValueError(f"{extract!r} is no regular expression: {problem}")
        return extract

    @property
    def metric(self) -> str:
        """What a score of this verifier is: the text metric itself, `log_likelihood`, or `accuracy`."""
        if self.kind in get_args(TextMetric):
            return self.kind
        return "log_likelihood" if self.kind == "perplexity" else "accuracy"


def pattern_problem(pattern: str) -> str:
    """'' or why a text is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def verify(config: VerifierConfig, response: str, reference: str, databases: Sequence[Path] = ()) -> tuple[float, str]:
    """Score `response` against `reference`; `databases` are the files of `sql_execution`."""
    answer = extract(config, response)
    if answer is None:
        return 0.0, "no answer found"
    if config.kind == "refusal":
        wanted = reference.strip() if reference.strip() in REFUSAL_REFERENCES else _behaviour(reference)
        found = _behaviour(answer)
        return float(found == wanted), {"refuse": "refused", "answer": "answered"}[found]
    if config.kind == "regex":
        if problem := pattern_problem(reference):
            return 0.0, f"the reference is no regular expression: {problem}"
        flags = re.IGNORECASE if config.ignore_case else 0
        return (1.0, "match") if re.fullmatch(reference, answer, flags) else (0.0, "no match")
    wanted = extract_reference(config, reference)
    if config.kind == "sql_execution":
        return _sql(answer, wanted, databases, config.timeout_seconds)
    if config.kind == "numeric":
        return _numeric(answer, wanted, config.tolerance)
    if config.kind in get_args(TextMetric):
        score = sentence_score(cast(TextMetric, config.kind), answer, wanted, config.tokenizer)
        return score, f"{config.kind} {score:.3f}"
    left, right = normalise(answer, config.ignore_case), normalise(wanted, config.ignore_case)
    return (1.0, "equal") if left == right else (0.0, "different")


def _behaviour(response: str) -> str:
    return "refuse" if is_refusal(response) else "answer"


def extract(config: VerifierConfig, response: str) -> str | None:
    """The answer inside a response; None if the pattern does not occur."""
    if not config.extract:
        return response.strip()
    matches = list(re.finditer(config.extract, response, re.DOTALL))
    if not matches:
        return None
    last = matches[-1]
    return next((group for group in last.groups() if group is not None), last[0]).strip()


def extract_reference(config: VerifierConfig, reference: str) -> str:
    """The answer inside a reference, found as in a response; all of it where the pattern finds nothing, as then only
    the answer was written down."""
    return extract(config, reference) or reference.strip()


def normalise(text: str, ignore_case: bool = False) -> str:
    """NFKC with runs of white space as one space: what a reader would call the same text."""
    folded = " ".join(unicodedata.normalize("NFKC", text).split())
    return folded.casefold() if ignore_case else folded


def _numeric(answer: str, reference: str, tolerance: float) -> tuple[float, str]:
    found, wanted = last_number(answer), last_number(reference)
    if wanted is None:
        return 0.0, "the reference is no number"
    if found is None:
        return 0.0, "no number found"
    close = abs(found - wanted) <= tolerance * max(1.0, abs(wanted))
    return (1.0, "equal") if close else (0.0, "different")


def _sql(query: str, reference: str, databases: Sequence[Path], timeout_seconds: float) -> tuple[float, str]:
    ordered = "order by" in reference.lower()
    for database in databases:
        rows, problem = run_sql(database, query, timeout_seconds)
        if rows is None:
            return 0.0, problem
        wanted, problem = run_sql(database, reference, timeout_seconds)
        if wanted is None:
            return 0.0, f"the reference fails: {problem}"
        if rows != wanted and (ordered or sorted(map(repr, rows)) != sorted(map(repr, wanted))):
            return 0.0, "wrong rows"
    return 1.0, "equal rows"


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_MAX_ROWS = 10_000


def run_sql(database: Path, query: str, timeout_seconds: float) -> tuple[list[tuple] | None, str]:
    """(rows, '') of one read-only query, or (None, reason).

    The file is opened immutable, the authoriser allows reading alone, and a progress handler ends the query at its
    time box.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)
        try:
            allow = lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY  # noqa: E731
            connection.set_authorizer(allow)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            rows = connection.execute(query).fetchmany(_MAX_ROWS + 1)
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        reason = str(error)
        if reason == "interrupted":
            return None, f"slower than {timeout_seconds:g} s"
        return None, "not allowed" if reason == "not authorized" else "does not run"
    if len(rows) > _MAX_ROWS:
        return None, f"more than {_MAX_ROWS} rows"
    return rows, ""
