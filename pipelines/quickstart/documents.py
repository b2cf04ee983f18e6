"""The clean documents of the shop: handbook, branch notes, schema notes, glossary and SQL cookbook."""

from __future__ import annotations

import random
import unicodedata
import zlib
from typing import NamedTuple

from bloomery.pipelines.quickstart.families import FAMILIES, LANGUAGES, SLOTS
from bloomery.pipelines.quickstart.grammar import expand, settle_particles
from bloomery.pipelines.quickstart.handbook import RULES_EN, RULES_KO, TOPICS_EN, TOPICS_KO
from bloomery.pipelines.quickstart.questions import fill, is_held_out, slot_combinations
from bloomery.pipelines.quickstart.schema_notes import (
    COLUMN_NOTES_EN,
    COLUMN_NOTES_KO,
    COLUMNS,
    TERM_NOTES_EN,
    TERM_NOTES_KO,
    TERMS,
    Term,
)

NUM_COOKBOOK = 280
NUM_GLOSSARY = 180
NUM_SCHEMA = 160
NUM_HANDBOOK = 880
NUM_HELD_OUT = 120
# Far below the Jaccard of .8 at which deduplication usually cuts: no clean document looks like a copy of another.
MAX_RESEMBLANCE = 0.6

_SKETCH_SIZE = 64
_TRIES_PER_DOCUMENT = 60
_RULES = {"en": RULES_EN, "ko": RULES_KO}
_TOPICS = {"en": TOPICS_EN, "ko": TOPICS_KO}


class Document(NamedTuple):
    """One document: its text, "en" or "ko", and the kind of page it comes from."""

    text: str
    language: str
    source: str


class NearCopies:
    """Documents seen so far, as bottom-k sketches of their character 5-grams (Broder 1997)."""

    def __init__(self) -> None:
        self._sketches: list[frozenset[int]] = []
        self._holders: dict[int, list[int]] = {}

    def add_if_new(self, text: str) -> bool:
        """Remember `text` and return True, or return False if its estimated Jaccard with one seen is too high."""
        sketch = _sketch(text)
        shared: dict[int, int] = {}
        for value in sketch:
            for holder in self._holders.get(value, ()):
                shared[holder] = shared.get(holder, 0) + 1
        if any(
            _jaccard(sketch, self._sketches[holder]) > MAX_RESEMBLANCE
            for holder, count in shared.items()
            if count > _SKETCH_SIZE // 4
        ):
            return False
        for value in sketch:
            self._holders.setdefault(value, []).append(len(self._sketches))
        self._sketches.append(sketch)
        return True


def make_documents(seed: int) -> tuple[list[Document], list[Document]]:
    """Return the corpus documents and, from the same sources, NUM_HELD_OUT documents that are not near them."""
    rng = random.Random(f"documents/{seed}")
    seen = NearCopies()
    makers = (
        (_cookbook, NUM_COOKBOOK),
        (_glossary, NUM_GLOSSARY),
        (_schema, NUM_SCHEMA),
        (_handbook, NUM_HANDBOOK),
    )
    total = sum(count for _, count in makers)
    corpus: list[Document] = []
    held_out: list[Document] = []
    for maker, count in makers:
        made = [
            _fresh(maker, number, seed, rng, seen)
            for number in range(count + round(NUM_HELD_OUT * count / total))
        ]
        rng.shuffle(made)
        corpus += made[:count]
        held_out += made[count:]
    return corpus, held_out


def _fresh(maker, number: int, seed: int, rng: random.Random, seen: NearCopies) -> Document:
    for _ in range(_TRIES_PER_DOCUMENT):
        document = maker(number, LANGUAGES[number % len(LANGUAGES)], seed, rng)
        if seen.add_if_new(document.text):
            return document
    raise ValueError(
        f"{maker.__name__} ran out of different documents at number {number}; write more sentences"
    )


def _handbook(number: int, language: str, seed: int, rng: random.Random) -> Document:
    topic = rng.choice(list(_TOPICS[language]))
    source = "handbook" if number % 3 else "notes"
    return Document(
        _paragraph(topic, _sentences(topic, language, rng.randrange(3, 6), rng)), language, source
    )


def _sentences(topic: str, language: str, count: int, rng: random.Random) -> list[str]:
    return [
        expand(template, _RULES[language], rng) for template in rng.sample(_TOPICS[language][topic], count)
    ]


def _aside(language: str, rng: random.Random) -> list[str]:
    """One or two sentences about the shop, so that short technical notes differ from each other."""
    return _sentences(rng.choice(list(_TOPICS[language])), language, rng.randrange(1, 3), rng)


def _cookbook(number: int, language: str, seed: int, rng: random.Random) -> Document:
    family = FAMILIES[number // len(LANGUAGES) % len(FAMILIES)]
    allowed = [values for values in slot_combinations(family) if not is_held_out(family, values, seed)]
    values = rng.choice(allowed)
    title = fill(family.title_en if language == "en" else family.title_ko, values, language)
    sql = fill(family.sql, values, "sql")
    lines = [
        f"## {title[0].upper()}{title[1:]}",
        "",
        f"```sql\n{sql}\n```",
        "",
        " ".join(_aside(language, rng)),
    ]
    return Document("\n".join(lines), language, "cookbook")


def _glossary(number: int, language: str, seed: int, rng: random.Random) -> Document:
    term = TERMS[number // len(LANGUAGES) % len(TERMS)]
    condition = term_condition(term)
    if language == "en":
        name, other, meaning, notes = term.en, term.ko, term.meaning_en, TERM_NOTES_EN
        tail = rng.choice(
            (f"In SQL: `{condition}` on {term.table}.", f"The condition on {term.table} is `{condition}`.")
        )
    else:
        name, other, meaning, notes = term.ko, term.en, term.meaning_ko, TERM_NOTES_KO
        tail = rng.choice(
            (
                f"SQL 조건은 {term.table} 표에서 `{condition}` 이다.",
                f"{term.table} 표에서는 `{condition}` 조건을 쓴다.",
            )
        )
    lines = [
        settle_particles(note.format(term=name, other=other, meaning=meaning))
        for note in rng.sample(notes, 2)
    ]
    return Document(_paragraph(name, [*lines, tail, *_aside(language, rng)]), language, "glossary")


def term_condition(term: Term) -> str:
    """Return the SQL condition of a glossary term, read from the slots so that it stands in one place."""
    slot = SLOTS[f"{term.table[:-1]}_term"]
    return next(value.sql for value in slot if value.en == term.en)


def _schema(number: int, language: str, seed: int, rng: random.Random) -> Document:
    notes = COLUMN_NOTES_EN if language == "en" else COLUMN_NOTES_KO
    table = rng.choice([column[0] for column in COLUMNS])
    columns = [column for column in COLUMNS if column[0] == table]
    lines = [
        rng.choice(notes).format(table=table, column=column, meaning=en if language == "en" else ko)
        for _, column, en, ko in rng.sample(columns, min(len(columns), rng.randrange(2, 5)))
    ]
    return Document(_paragraph(table, lines + _aside(language, rng)), language, "schema")


def _paragraph(heading: str, sentences: list[str]) -> str:
    return f"# {heading[0].upper()}{heading[1:]}\n\n" + " ".join(sentences)


def _sketch(text: str) -> frozenset[int]:
    letters = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    shingles = {zlib.crc32(letters[i : i + 5].encode()) for i in range(max(1, len(letters) - 4))}
    return frozenset(sorted(shingles)[:_SKETCH_SIZE])


def _jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    lowest = sorted(left | right)[:_SKETCH_SIZE]
    return sum(value in left and value in right for value in lowest) / len(lowest)
