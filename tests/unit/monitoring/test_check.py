"""Drift and the whole check, on a log in which two weeks are alike and later weeks ask for something new."""

import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bloomery.monitoring.check import check
from bloomery.monitoring.config import MonitoringConfig, PolicyConfig

START = datetime(2025, 1, 6, tzinfo=UTC)
NOW = START + timedelta(weeks=6)
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


CONFIG = MonitoringConfig(
    reference_rows=ROWS_PER_WEEK,
    window_rows=ROWS_PER_WEEK,
    policy=PolicyConfig(min_rows=100, consecutive_windows=2),
)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe that is no recipe: the retraining is started for real, and ends at once with an error."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: 1\n")
    return path


def test_alike_weeks_are_no_drift(tmp_path, recipe):
    result = check(recipe, tmp_path, write_log(tmp_path / "log.jsonl", [0, 0]), CONFIG, now=NOW)
    assert result["action"] == "none"
    assert result["drifted_signals"] == []
    assert result["started"] is None
    assert "No drift: sql:3" in Path(result["decision_page"]).read_text()


def test_drifted_weeks_start_one_retraining(tmp_path, recipe):
    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4])
    first_week = check(recipe, tmp_path, log, CONFIG, now=NOW)
    assert first_week["action"] == "wait"
    assert {"prompt_text", "prompt_novelty", "prompt_characters", "feedback"} <= set(first_week["drifted_signals"])
    assert "latency_seconds" not in first_week["drifted_signals"]
    assert "1 window in a row; 2 in a row are needed" in first_week["reason"]

    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4, 0.5])
    dry = check(recipe, tmp_path, log, CONFIG, now=NOW, start=False)
    assert dry["action"] == "retrain" and dry["started"] is None
    assert f"run {recipe} --workdir {tmp_path}" in dry["command"]

    second_week = check(recipe, tmp_path, log, CONFIG, now=NOW)
    assert second_week["action"] == "retrain" and second_week["started_now"]
    again = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(days=9))
    assert again["action"] == "retrain" and not again["started_now"]
    assert again["started"] == second_week["started"]
    assert len(list((tmp_path / "monitoring" / "triggers").glob("*.json"))) == 1
    _the_command_ran(Path(second_week["started"]["log"]))

    folder = tmp_path / "monitoring" / second_week["window"]
    assert json.loads((folder / "decision.json").read_text()) == again
    assert len((folder / "window.jsonl").read_text().splitlines()) == ROWS_PER_WEEK
    assert "<html" in (folder / "drift.html").read_text()[:2000]
    report = json.loads((folder / "drift.json").read_text())
    assert {"gift", "cards"} <= set(report["novel_words"])
    assert "상품권" in {word for example in report["examples"] for word in example["novel_words"]}
    assert all("gift" in e["prompt"] or "상품권" in e["prompt"] for e in report["examples"])
    page = (folder / "decision.md").read_text()
    assert page.startswith("# Retrain: sql:3") and "gift" in page and "promoted only if" in page

    log = write_log(tmp_path / "log.jsonl", [0, 0, 0.4, 0.5, 0.5])
    third_week = check(recipe, tmp_path, log, CONFIG, now=NOW + timedelta(hours=1))
    assert third_week["action"] == "wait" and "cooling down" in third_week["reason"]


def test_before_the_first_window_nothing_is_judged(tmp_path, recipe):
    result = check(recipe, tmp_path, write_log(tmp_path / "log.jsonl", [0]), CONFIG, now=NOW)
    assert result["window"] is None
    assert result["reason"] == "150 rows of sql:3 so far; a reference and a full window are 150 + 150 rows"
    assert not (tmp_path / "monitoring").exists()


def test_the_windows_rows_can_be_trained_on(tmp_path, recipe):
    config = CONFIG.model_copy(
        update={
            "settings": ["tasks.sql.splits.unlabelled.path={window}"],
            "policy": PolicyConfig(min_rows=100, consecutive_windows=1),
        }
    )
    log = write_log(tmp_path / "log.jsonl", [0, 0.5])
    result = check(recipe, tmp_path, log, config, settings=["seed=3"], now=NOW, start=False)
    assert "--set seed=3 --set" in result["command"]
    assert (
        f"tasks.sql.splits.unlabelled.path={tmp_path}/monitoring/{result['window']}/window.jsonl" in result["command"]
    )


def _the_command_ran(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.read_text()
