"""Questions asked beside documents, one of which may hold the answer: retrieval-augmented fine-tuning.

RAFT (arXiv 2403.10131, section 3): the model learns to quote the document that answers, its oracle, to pass over others
that a search would find too, and to answer what it knows by heart where the oracle was not found.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bloomery.components.synthetic_data.config import RaftConfig

DRAWN = 50
"""Documents drawn at random, of which those that share most words with a question stand beside its oracle."""


class Source(NamedTuple):
    """A question that was found in a document."""

    question: str
    answer: str
    document: int
    """Place of the document among all."""
    start: int
    end: int
    """Where the question with its answer stands in it, which is what is quoted."""


def asked(
    sources: Sequence[Source], documents: Sequence[str], config: RaftConfig, seed: int
) -> Iterator[tuple[Source, str, str]]:
    """(source, what is asked, what is answered) of each question that a document can stand beside.

    A passage that holds the answer, or what the oracle would be quoted for, is no distractor.
    """
    chance = random.Random(seed)
    for source in sources:
        text, size = documents[source.document], config.passage_characters
        quote = text[source.start : source.end].strip()
        drawn = chance.sample(range(len(documents)), min(DRAWN, len(documents)))
        others = [_passage(documents[at], 0, 0, size) for at in drawn if at != source.document]
        helpless = [other for other in others if not _holds(other, source.answer) and not _holds(other, quote)]
        words = _words(source.question)
        passages = sorted(helpless, key=lambda other: -len(words & _words(other)))[: config.distractors]
        has_oracle = chance.random() < config.oracle_share
        if has_oracle:
            passages.insert(chance.randint(0, len(passages)), _passage(text, source.start, source.end, size))
        if passages:
            shown = "\n".join(f"<DOCUMENT>{passage}</DOCUMENT>" for passage in passages)
            answer = config.answer.format(quote=quote, answer=source.answer) if has_oracle else source.answer
            yield source, config.prompt.format(documents=shown, question=source.question), answer


def _passage(text: str, start: int, end: int, size: int) -> str:
    """Some `size` characters of a text around what must not be cut."""
    begin = max(0, start - max(0, size - (end - start)) // 2)
    return text[begin : max(end, begin + size)].strip()


def _holds(passage: str, text: str) -> bool:
    """Whether a passage says a text, whatever the case and the spaces."""
    return " ".join(text.split()).casefold() in " ".join(passage.split()).casefold()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
