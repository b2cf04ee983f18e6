"""Data recombination: a seed asked about another thing, with the answer changed alike.

"orders from Busan" and its query become "orders from Jeju" and the query for Jeju. After Jia and Liang 2016
(arXiv 1606.03622, section 4), who found it the strongest augmentation for semantic parsing; here with entities that the
recipe lists instead of a grammar that is learnt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Entities = Mapping[str, Mapping[str, Sequence[str]]]
"""Kind → value in the answer → its names in questions, one a language, in the same order for every value of a kind."""

_NUMBER = r"(?<![\w.'-])\d+(?![\w'-]|\.\d)"
# In a question a unit may follow at once, as in "250달러"; a month may not, it is an entity.
_ASKED_NUMBER = r"(?<![\w.-])\d+(?![\d월년]|\.\d)"


class Slot(NamedTuple):
    """A thing that question and answer share."""

    start: int
    end: int
    """Where the name stands in the question."""
    value: str
    """How the answer says it."""
    others: list[tuple[str, str]]
    """(name, value) of the things that may stand in its place."""


def recombine(
    question: str, answer: str, entities: Entities, numbers: Sequence[str], rng: random.Random
) -> tuple[str, str]:
    """`question` and `answer` about other things, drawn at random; unchanged where they share none.

    `numbers` may stand in the place of numbers of as many digits.
    """
    asked, answered = question, answer
    for slot in sorted(slots(question, answer, entities, numbers), reverse=True):
        name, value = rng.choice(slot.others)
        asked = asked[: slot.start] + name + asked[slot.end :]
        answered = _bounded(slot.value).sub(lambda _, value=value: f"\0{value}\0", answered)
    return asked, answered.replace("\0", "")


def slots(question: str, answer: str, entities: Entities, numbers: Sequence[str]) -> list[Slot]:
    """What question and answer share, from left to right, longer names first; no two overlap."""
    found: list[Slot] = []
    for values in entities.values():
        for value, names in values.items():
            if not _bounded(value).search(answer):
                continue
            for language, name in enumerate(names):
                others = [(other[language], key) for key, other in values.items() if language < len(other)]
                found += [Slot(*match.span(), value, others) for match in _name(name).finditer(question)]
    for match in re.finditer(_ASKED_NUMBER, question):
        number = match.group()
        if re.search(_NUMBER, answer) and number in re.findall(_NUMBER, answer):
            found.append(
                Slot(*match.span(), number, [(other, other) for other in numbers if len(other) == len(number)])
            )
    kept: list[Slot] = []
    for slot in sorted(found, key=lambda slot: (slot.start - slot.end, slot.start)):
        clashes = any(slot.start < other.end and other.start < slot.end or slot.value == other.value for other in kept)
        if slot.others and not clashes:
            kept.append(slot)
    return kept


def numbers_in(answers: Sequence[str]) -> list[str]:
    """The numbers that stand in `answers`, each once."""
    return sorted({number for answer in answers for number in re.findall(_NUMBER, answer)})


def _name(name: str) -> re.Pattern[str]:
    """A name as a word; a Korean one may carry a particle."""
    after = r"(?![a-z0-9])" if name.isascii() else ""
    return re.compile(rf"(?<!\w){re.escape(name)}{after}", re.IGNORECASE)


def _bounded(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w\0]){re.escape(value)}(?![\w\0])")
