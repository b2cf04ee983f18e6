"""General text and general skills: what the base model knows before it meets the shop, and may forget.

The text is everyday English and Korean from a grammar, and SQL over schemas that have nothing to do with the shop.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from bloomery.pipelines.quickstart.general_words import (
    ANTONYMS,
    KOREAN_TEMPLATES,
    MONTHS_KO,
    RULES_EN,
    RULES_KO,
    SQL_COMMENTS,
    SQL_SCHEMAS,
    SQL_TEMPLATES,
    TEMPLATES,
    TRANSLATIONS,
    WEEKDAYS_KO,
)
from bloomery.pipelines.quickstart.grammar import expand

NUM_TEXTS = 1600
NUM_TEXTS_HELD_OUT = 150
SQL_SHARE = 0.3
NUM_SKILLS_TRAIN = 12000
NUM_SKILLS_TEST = 300
MONTHS_EN = "January February March April May June July August September October November December".split()
WEEKDAYS_EN = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Skill(NamedTuple):
    """One exercise of a skill with its only right answer."""

    prompt: str
    answer: str
    skill: str


def make_text(seed: int) -> tuple[list[dict], list[dict]]:
    """Return rows {"text", "language"} for pre-training and, disjoint from them, for held-out perplexity."""
    rng = random.Random(f"general/{seed}")
    texts: dict[str, str] = {}
    while len(texts) < NUM_TEXTS + NUM_TEXTS_HELD_OUT:
        language = "en" if len(texts) % 2 == 0 else "ko"
        text = _sql_text(language, rng) if rng.random() < SQL_SHARE else _prose(language, rng)
        texts.setdefault(text, language)
    rows = [{"text": text, "language": language} for text, language in texts.items()]
    return rows[NUM_TEXTS_HELD_OUT:], rows[:NUM_TEXTS_HELD_OUT]


def make_skills(seed: int) -> list[dict]:
    """Return rows {"prompt", "answer", "skill", "split"}; no prompt stands in both splits."""
    rng = random.Random(f"skills/{seed}")
    makers = tuple(_SHARES)
    prompts: dict[str, Skill] = {}
    test: dict[str, list[Skill]] = {maker.__name__: [] for maker in makers}
    per_skill = -(-NUM_SKILLS_TEST // len(makers))
    while min(map(len, test.values())) < per_skill:
        for maker in makers:
            exercise = maker(rng)
            if len(test[maker.__name__]) < per_skill and exercise.prompt not in prompts:
                prompts[exercise.prompt] = exercise
                test[maker.__name__].append(exercise)
    train = []
    while len(train) < NUM_SKILLS_TRAIN:
        exercise = rng.choices(makers, weights=list(_SHARES.values()))[0](rng)
        if exercise.prompt not in prompts:
            train.append(exercise)
    tested = [exercise for exercises in test.values() for exercise in exercises][:NUM_SKILLS_TEST]
    return [{**e._asdict(), "split": split} for split, es in (("train", train), ("test", tested)) for e in es]


def _prose(language: str, rng: random.Random) -> str:
    templates, rules = (TEMPLATES, RULES_EN) if language == "en" else (KOREAN_TEMPLATES, RULES_KO)
    sentences = [expand(rng.choice(templates), rules, rng) for _ in range(rng.randrange(3, 7))]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _sql_text(language: str, rng: random.Random) -> str:
    blocks = []
    for _ in range(rng.randrange(1, 3)):
        schema = rng.choice(SQL_SCHEMAS)
        # {group} and {measure} stand for one column throughout a statement, unlike {c} and {x}.
        rules = schema | {"group": [rng.choice(schema["c"])], "measure": [rng.choice(schema["x"])]}
        comment = expand(rng.choice(SQL_COMMENTS[language]), rules, rng)
        blocks.append(f"-- {comment}\n{expand(rng.choice(SQL_TEMPLATES), rules, rng)}")
    return "\n\n".join(blocks)


def _exercise(skill: str, frames: tuple[str, ...], item: str, answer: str, rng: random.Random) -> Skill:
    """The item always follows a space at the end: one spelling in tokens, so a frame more is no new fact."""
    return Skill(f"{rng.choice(frames)}: {item}", answer, skill)


def _digits(low: int, high: int, rng: random.Random) -> list[str]:
    return rng.choices("0123456789", k=rng.randrange(low, high))


def _copy(rng: random.Random) -> Skill:
    digits = " ".join(_digits(2, 5, rng))
    return _exercise("copy", ("Repeat", "Copy this", "따라 써", "그대로 써"), digits, digits, rng)


def _last(rng: random.Random) -> Skill:
    digits = _digits(3, 6, rng)
    frames = ("Last number", "Which number comes last", "마지막 수", "끝에 있는 수")
    return _exercise("last", frames, " ".join(digits), digits[-1], rng)


def _sort(rng: random.Random) -> Skill:
    digits = rng.sample("0123456789", 3)
    frames = ("Sort", "Sort these numbers", "작은 수부터 써", "차례로 써")
    return _exercise("sort", frames, " ".join(digits), " ".join(sorted(digits)), rng)


def _next_in_cycle(rng: random.Random) -> Skill:
    cycle, frames = rng.choice(
        (
            (WEEKDAYS_EN, ("Next day", "Which day follows", "The day after", "What day is next")),
            (WEEKDAYS_KO, ("다음 요일", "다음 날", "바로 뒤 요일", "그다음 날은")),
            (MONTHS_EN, ("Next month", "Which month follows", "The month after", "What month is next")),
            (MONTHS_KO, ("다음 달", "바로 뒤 달", "그다음 달은", "한 달 뒤")),
        )
    )
    place = rng.randrange(len(cycle))
    return _exercise("next_in_cycle", frames, cycle[place], cycle[(place + 1) % len(cycle)], rng)


def _translate(rng: random.Random) -> Skill:
    english, korean = rng.choice(TRANSLATIONS)
    if rng.random() < 0.5:
        return _exercise(
            "translate",
            ("Translate to Korean", "In Korean", "한국어로", "우리말로 옮겨"),
            english,
            korean,
            rng,
        )
    return _exercise(
        "translate", ("Translate to English", "In English", "영어로", "영어로 옮겨"), korean, english, rng
    )


def _antonym(rng: random.Random) -> Skill:
    pair = list(rng.choice(ANTONYMS))
    rng.shuffle(pair)
    korean = pair[0][0] >= "가"
    frames = (
        ("반대말", "반대되는 말", "뜻이 반대인 말", "거꾸로 말하면")
        if korean
        else ("Opposite", "The opposite of", "Antonym", "The contrary of")
    )
    return _exercise("antonym", frames, pair[0], pair[1], rng)


# Shares of the training exercises: what must be learnt by heart needs more of them than what follows a rule.
_SHARES = {_copy: 3, _next_in_cycle: 3, _translate: 4, _antonym: 3, _sort: 2, _last: 2}
