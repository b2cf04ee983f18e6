"""Questions with their SQL, and the splits they are dealt into."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bloomery.pipelines.quickstart.families import FAMILIES, FRAMES, LANGUAGES, SLOTS, Family, Value
from bloomery.pipelines.quickstart.grammar import settle_particles

SPLIT_SIZES = {"validation": 200, "test": 700, "train": 400, "unlabelled": 1600}
NUM_TEST_HELD_OUT = 200
# One value in six of a family's widest slot is kept for test_held_out: enough to measure, little lost to training.
HELD_OUT_FRACTION = 1 / 6

_SLOT = re.compile(r"\{(\w+)\}")


class Question(NamedTuple):
    """A question or order in natural language and the SQL that answers it."""

    text: str
    sql: str
    language: str
    family: str
    values: tuple[tuple[str, str], ...]
    """(slot, SQL text of its value), in the order of the SQL template."""

    def row(self, split: str) -> dict[str, str]:
        """Return the question as a line of `questions.jsonl`."""
        digest = hashlib.sha256(f"{self.language}\n{self.text}".encode()).hexdigest()[:16]
        return {
            "id": digest,
            "question": self.text,
            "sql": self.sql,
            "language": self.language,
            "family": self.family,
            "split": split,
        }


def normalised(text: str) -> str:
    """Return `text` in NFC, case-folded, with letters and digits only: equal for questions that ask the same."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", text).casefold()))


def slot_names(family: Family) -> list[str]:
    """Return the slots of a family in the order of its SQL template, each once."""
    return list(dict.fromkeys(_SLOT.findall(family.sql)))


def fill(template: str, values: dict[str, Value], language: str) -> str:
    """Return `template` with each `{slot}` said in `language` ("en", "ko" or "sql")."""
    return settle_particles(_SLOT.sub(lambda m: getattr(values[m.group(1)], language), template))


def slot_combinations(family: Family) -> Iterator[dict[str, Value]]:
    """Yield every assignment of values to the slots of `family`."""
    names = slot_names(family)
    for chosen in itertools.product(*(SLOTS[name] for name in names)):
        yield dict(zip(names, chosen, strict=True))


def held_out_values(family: Family, seed: int) -> tuple[str, set[str]]:
    """Return the widest slot of `family` and those of its SQL values that only `test_held_out` may use."""
    slot = max(slot_names(family), key=lambda name: len(SLOTS[name]))
    values = [value.sql for value in SLOTS[slot]]
    rng = random.Random(f"held_out/{family.name}/{seed}")
    return slot, set(rng.sample(values, max(1, round(len(values) * HELD_OUT_FRACTION))))


def is_held_out(family: Family, values: dict[str, Value], seed: int) -> bool:
    """Return whether this family with these slot values is kept out of every split but `test_held_out`."""
    slot, held_out = held_out_values(family, seed)
    return values[slot].sql in held_out


def phrasings(family: Family, language: str) -> list[str]:
    """Return every frame of the family's kind around each of its noun phrases, slots still open."""
    frames, phrases = FRAMES[family.kind, language], getattr(family, language)
    return [
        frame.replace("{np}", phrase).replace("{unit}", family.unit) for frame in frames for phrase in phrases
    ]


def all_questions(family: Family, language: str, templates: Iterable[str] | None = None) -> list[Question]:
    """Return every question of `family` in `language`, with `templates` in place of its usual phrasings if given."""
    templates = list(templates or phrasings(family, language))
    return [
        Question(
            _sentence(fill(template, values, language)),
            fill(family.sql, values, "sql"),
            language,
            family.name,
            tuple((name, value.sql) for name, value in values.items()),
        )
        for values in slot_combinations(family)
        for template in templates
    ]


def in_other_frames(family: Family, language: str, frames: Iterable[str]) -> list[Question]:
    """Return every question of `family` in `language` with its noun phrases in `frames`, which fit every kind."""
    number_of = {"en": "number of {}", "ko": "{} 수"}[language] if family.kind == "count" else "{}"
    phrases = [number_of.replace("{}", phrase) for phrase in getattr(family, language)]
    return all_questions(family, language, [frame.replace("{np}", phrase) for frame in frames for phrase in phrases])


def by_held_out_value(family: Family, questions: list[Question], seed: int) -> tuple[list[Question], list[Question]]:
    """Return the questions of `family` without and with one of its held-out values, each in their order."""
    slot, kept_back = held_out_values(family, seed)
    parts: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        parts[dict(question.values)[slot] in kept_back].append(question)
    return parts


def make_splits(seed: int) -> tuple[dict[str, list[Question]], list[Question]]:
    """Return the questions of each split, and those of the same distribution that no split took.

    Every split goes round the families and the two languages in turn, so that each holds all of them in nearly
    equal number. No two questions share their normalised text.
    """
    rng = random.Random(f"questions/{seed}")
    taken: set[str] = set()
    usual: dict[tuple[str, str], list[Question]] = {}
    held_out: dict[tuple[str, str], list[Question]] = {}
    for family in FAMILIES:
        for language in LANGUAGES:
            questions = all_questions(family, language)
            rng.shuffle(questions)
            key = (family.name, language)
            usual[key], held_out[key] = by_held_out_value(family, questions, seed)
    splits = {name: deal(usual, size, taken, rng) for name, size in SPLIT_SIZES.items()}
    splits["test_held_out"] = deal(held_out, NUM_TEST_HELD_OUT, taken, rng)
    rest = [q for questions in usual.values() for q in questions if normalised(q.text) not in taken]
    rng.shuffle(rest)
    return splits, rest


def deal(
    piles: dict[tuple[str, str], list[Question]], count: int, taken: set[str], rng: random.Random
) -> list[Question]:
    """Take `count` questions from the ends of `piles`, going round them in a fresh random order each time.

    Questions whose normalised text is in `taken` are thrown away; those dealt are added to it. Piles that run
    out drop out. Raises ValueError if all piles together hold too few.
    """
    dealt: list[Question] = []
    while len(dealt) < count:
        keys = [key for key, pile in piles.items() if pile]
        if not keys:
            raise ValueError(
                f"only {len(dealt)} of {count} different questions can be made from these families"
            )
        rng.shuffle(keys)
        for key in keys[: count - len(dealt)]:
            while piles[key]:
                question = piles[key].pop()
                text = normalised(question.text)
                if text not in taken:
                    taken.add(text)
                    dealt.append(question)
                    break
    return dealt


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
