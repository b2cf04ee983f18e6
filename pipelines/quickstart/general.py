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
from bloomery.pipelines.quickstart.grammar import expand, settle_particles

NUM_TEXTS = 2800
NUM_TEXTS_HELD_OUT = 150
SQL_SHARE = 0.3
NUM_SKILLS_TRAIN = 16000
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
    makers = (_copy, _next_in_cycle, _translate, _antonym, _add, _sort, _last_word)
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
        exercise = makers[len(train) % len(makers)](rng)
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


def _words(rng: random.Random, low: int, high: int) -> tuple[str, list[str]]:
    language = rng.choice(("en", "ko"))
    rules = RULES_EN if language == "en" else RULES_KO
    return language, rng.sample(rules["thing"] + rules["animal"] + rules["food"], rng.randrange(low, high))


def _copy(rng: random.Random) -> Skill:
    language, words = _words(rng, 2, 4)
    text = " ".join(words)
    frames = ("Repeat: {}", "Copy this: {}", "Say again: {}") if language == "en" else ("따라 써: {}", "그대로 써: {}")
    return Skill(rng.choice(frames).format(text), text, "copy")


def _last_word(rng: random.Random) -> Skill:
    language, words = _words(rng, 3, 5)
    frames = ("Last word: {}", "Give the last word: {}") if language == "en" else ("마지막 낱말: {}", "끝 낱말을 써: {}")
    return Skill(rng.choice(frames).format(" ".join(words)), words[-1], "last_word")


def _next_in_cycle(rng: random.Random) -> Skill:
    cycle, frames = rng.choice((
        (WEEKDAYS_EN, ("What day comes after {}?", "Which day follows {}?", "Day after {}?", "Next day: {}")),
        (WEEKDAYS_KO, ("{} 다음 요일은?", "{} 다음 날은 무슨 요일이야?", "{}의 다음 요일을 써줘.", "다음 요일: {}")),
        (MONTHS_EN, ("What month comes after {}?", "Which month follows {}?", "Month after {}?", "Next month: {}")),
        (MONTHS_KO, ("{} 다음 달은?", "{} 다음은 몇 월이야?", "{}의 다음 달을 써줘.", "다음 달: {}")),
    ))
    place = rng.randrange(len(cycle))
    return Skill(rng.choice(frames).format(cycle[place]), cycle[(place + 1) % len(cycle)], "next_in_cycle")


def _translate(rng: random.Random) -> Skill:
    english, korean = rng.choice(TRANSLATIONS)
    if rng.random() < 0.5:
        frame = rng.choice(("Translate to Korean: {}", "What is {} in Korean?", "{}: 한국어로?", "How do you say {} in Korean?"))
        return Skill(frame.format(english), korean, "translate")
    frame = rng.choice(("영어로 옮겨줘: {}", "{}[은/는] 영어로 뭐야?", "Translate to English: {}", "{}: 영어로?"))
    return Skill(settle_particles(frame.format(korean)), english, "translate")


def _antonym(rng: random.Random) -> Skill:
    pair = list(rng.choice(ANTONYMS))
    rng.shuffle(pair)
    korean = pair[0][0] >= "가"
    frames = ("{}의 반대말은?", "반대말: {}", "{}의 반대는 뭐야?", "반대말을 써줘: {}") if korean else (
        "Opposite of {}?", "What is the opposite of {}?", "Antonym: {}", "The contrary of {} is?")
    return Skill(rng.choice(frames).format(pair[0]), pair[1], "antonym")


def _add(rng: random.Random) -> Skill:
    left, right = rng.randrange(10), rng.randrange(10)
    frame = rng.choice(("What is {} + {}?", "{} + {} =", "{} 더하기 {}는?", "Add {} and {}."))
    return Skill(frame.format(left, right), str(left + right), "add")


def _sort(rng: random.Random) -> Skill:
    numbers = rng.sample(range(10), 3)
    frame = rng.choice(("Sort: {}", "Sort these numbers: {}", "작은 수부터 써: {}"))
    return Skill(frame.format(" ".join(map(str, numbers))), " ".join(map(str, sorted(numbers))), "sort")
