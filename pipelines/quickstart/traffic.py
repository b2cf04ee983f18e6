"""The prediction log to replay: two weeks like the test set, then a new table and new ways of asking."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from bloomery.pipelines.quickstart.families import FAMILIES, LANGUAGES, Family
from bloomery.pipelines.quickstart.questions import (
    Question,
    all_questions,
    by_held_out_value,
    deal,
    in_other_frames,
)

START = datetime(2025, 1, 6)
ROWS_PER_WEEK = 400
# Share of each week's rows that no earlier split resembles.
DRIFTED_FRACTION = (0.0, 0.0, 0.3, 0.4, 0.5)
# Of the drifted rows, the share that asks for the new table; the rest asks for old things in new words.
NEW_TABLE_FRACTION = 0.6

GIFT_CARD_FAMILIES = (
    Family(
        "gift_cards_state_month",
        "count",
        "SELECT COUNT(*) FROM gift_cards WHERE state = '{state}' AND bought LIKE '{month}%'",
        ("{state} gift cards bought in {month}", "gift cards from {month} that are {state}"),
        ("{month} {state} 상품권", "{month}에 산 {state} 상품권"),
        unit="장",
    ),
    Family(
        "gift_card_value_state",
        "value",
        "SELECT SUM(amount) FROM gift_cards WHERE state = '{state}' AND bought LIKE '{month}%'",
        ("total value of {state} gift cards from {month}", "amount on {state} gift cards bought in {month}"),
        ("{month} {state} 상품권 총액", "{month}에 산 {state} 상품권 금액"),
    ),
    Family(
        "gift_cards_city",
        "count",
        "SELECT COUNT(*) FROM gift_cards JOIN customers USING (customer_id) WHERE city = '{city}'",
        ("gift cards of customers in {city}", "gift cards bought in {city}"),
        ("{city} 고객의 상품권", "{city}에서 산 상품권"),
        unit="장",
    ),
    Family(
        "gift_cards_per_state",
        "table",
        "SELECT state, COUNT(*) FROM gift_cards WHERE bought LIKE '{month}%' GROUP BY state",
        ("number of {month} gift cards per state", "count of gift cards from {month} by state"),
        ("{month} 상태별 상품권 수", "{month}에 산 상품권의 상태별 수"),
    ),
    Family(
        "gift_card_buyers",
        "list",
        "SELECT name FROM customers WHERE city = '{city}' AND customer_id IN (SELECT customer_id FROM gift_cards)",
        ("customers in {city} with a gift card", "{city} customers who bought gift cards"),
        ("상품권을 산 {city} 고객", "상품권이 있는 {city} 고객"),
    ),
    Family(
        "gift_cards_least",
        "list",
        "SELECT name FROM gift_cards JOIN customers USING (customer_id) WHERE tier = '{tier}' "
        "GROUP BY customer_id HAVING COUNT(*) >= {cards}",
        (
            "{tier} customers with {cards} or more gift cards",
            "{tier} customers holding at least {cards} gift cards",
        ),
        ("상품권이 {cards}장 이상인 {tier} 고객", "상품권을 {cards}장 넘게 가진 {tier} 고객"),
    ),
)

# New ways of asking: chat style and long-winded. "count" phrases need "number of" to stand in these.
NEW_FRAMES = {
    "en": (
        "hey can u pull up the {np} real quick",
        "the {np} pls, thx!",
        "my boss wants the {np} asap",
        "Hi there, would it be at all possible to look into the {np} whenever you get a moment?",
        "quick one - {np}??",
        "Before the meeting I would love to have a look at the {np}, if you don't mind.",
    ),
    "ko": (
        "혹시 {np} 확인 가능할까요?",
        "{np} 좀요 급해요ㅠㅠ",
        "팀장님이 {np} 물어보시는데 빨리 좀 부탁드려요!",
        "{np} ㄱㄱ",
        "안녕하세요, 바쁘신데 죄송하지만 시간 되실 때 {np} 한번 봐 주실 수 있을까요?",
        "회의 들어가기 전에 {np} 한번 훑어보고 싶은데요.",
    ),
}


def make_traffic(rest: list[Question], taken: set[str], seed: int) -> list[dict]:
    """Return the log rows {"time", "week", "question", "sql", "language", "family"}, in time order.

    `rest` are questions of the usual distribution that no split took; `taken` the normalised texts that may not
    come again. Raises ValueError if a week cannot be filled.
    """
    rng = random.Random(f"traffic/{seed}")
    usual = _piles(rest, rng)
    new_table = _piles(
        [
            q
            for family in GIFT_CARD_FAMILIES
            for language in LANGUAGES
            for q in all_questions(family, language) + _in_new_words(family, language, seed)
        ],
        rng,
    )
    new_words = _piles(
        [q for family in FAMILIES for language in LANGUAGES for q in _in_new_words(family, language, seed)],
        rng,
    )
    taken = set(taken)
    rows = []
    for week, share in enumerate(DRIFTED_FRACTION, 1):
        drifted = round(ROWS_PER_WEEK * share)
        asking_new_table = round(drifted * NEW_TABLE_FRACTION)
        questions = (
            deal(usual, ROWS_PER_WEEK - drifted, taken, rng)
            + deal(new_table, asking_new_table, taken, rng)
            + deal(new_words, drifted - asking_new_table, taken, rng)
        )
        rng.shuffle(questions)
        rows += [
            _row(question, time, week) for question, time in zip(questions, _times(week, rng), strict=True)
        ]
    return rows


def _in_new_words(family: Family, language: str, seed: int) -> list[Question]:
    return by_held_out_value(family, in_other_frames(family, language, NEW_FRAMES[language]), seed)[0]


def _piles(questions: list[Question], rng: random.Random) -> dict[tuple[str, str], list[Question]]:
    piles: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        piles.setdefault((question.family, question.language), []).append(question)
    for pile in piles.values():
        rng.shuffle(pile)
    return piles


def _times(week: int, rng: random.Random) -> list[datetime]:
    """Return sorted times in the opening hours of week `week` (1-based), one per row."""
    monday = START + timedelta(weeks=week - 1)
    return sorted(
        monday + timedelta(days=rng.randrange(7), hours=rng.randrange(9, 19), seconds=rng.randrange(3600))
        for _ in range(ROWS_PER_WEEK)
    )


def _row(question: Question, time: datetime, week: int) -> dict:
    return {
        "time": time.isoformat(),
        "week": week,
        "question": question.text,
        "sql": question.sql,
        "language": question.language,
        "family": question.family,
    }
