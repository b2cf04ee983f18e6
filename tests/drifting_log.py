"""A prediction log in which two weeks are alike and later weeks ask for something new."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

START = datetime(2025, 1, 6, tzinfo=UTC)
ROWS_PER_WEEK = 150
CITIES = ["Seoul", "Busan", "Daegu", "Incheon", "Jeju"]
THINGS = {
    "orders": "주문",
    "returns": "반품",
    "customers": "고객",
    "products": "상품",
}
MONTHS = ["January", "March", "May", "July"]


def usual(rng: random.Random) -> tuple[str, str]:
    thing, city, month = rng.choice(list(THINGS)), rng.choice(CITIES), rng.choice(MONTHS)
    korean = rng.random() < 0.5
    prompt = f"{city}의 {THINGS[thing]} 수는?" if korean else f"How many {thing} in {city} in {month}?"
    return prompt, f"SELECT COUNT(*) FROM {thing} WHERE city = '{city}'"


def new(rng: random.Random) -> tuple[str, str]:
    city = rng.choice(CITIES)
    if rng.random() < 0.5:
        return f"혹시 {city}에서 산 상품권 총액 확인 부탁드려도 될까요 급해요ㅠㅠ", "SELECT 0"
    return (
        f"hey can u pull up the expired gift cards for {city} real quick, my boss wants it asap",
        "SELECT 0",
    )


def write_log(path: Path, weeks: list[float]) -> Path:
    """A log with one share of new questions a week; users dislike the answers to them."""
    rng = random.Random(5)
    with path.open("w", encoding="utf-8") as stream:
        for week, share in enumerate(weeks):
            for index in range(ROWS_PER_WEEK):
                is_new = rng.random() < share
                prompt, response = new(rng) if is_new else usual(rng)
                moment = START + timedelta(weeks=week, minutes=60 * index)
                row = {
                    "id": f"{week}-{index}",
                    "time": moment.isoformat(),
                    "model_name": "sql",
                    "model_version": "3",
                    "prompt": prompt,
                    "response": response,
                    "latency_seconds": rng.uniform(0.1, 0.2),
                    "prompt_tokens": len(prompt),
                    "response_tokens": len(response),
                    "feedback": float(rng.random() > (0.9 if is_new else 0.1)),
                    "label": None,
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
