from bloomery.components.core.records import Prediction
from bloomery.monitoring.drifted import select, topics_of


def row(index: int, prompt: str, label: str | None = None) -> Prediction:
    return Prediction(
        id=f"{index:03d}",
        time="2025-01-06T09:00:00+00:00",
        model_name="m",
        model_version="1",
        prompt=prompt,
        response="r",
        latency_seconds=0.1,
        prompt_tokens=1,
        response_tokens=1,
        feedback=None,
        label=label,
    )


REFERENCE = [index / 100 for index in range(100)]  # the 95 % quantile is 0.9405


def test_only_rows_newer_than_95_of_100_old_ones():
    rows = [row(0, "old"), row(1, "newer"), row(2, "newest"), row(3, " ")]
    found = select(rows, [0.94, 0.95, 0.99, 1.0], REFERENCE, 10, 1)
    assert [item.id for item in found] == ["002", "001"]


def test_each_prompt_once_and_labels_first():
    rows = [row(0, "gift  CARDS"), row(1, "gift cards"), row(2, "vouchers", label="SELECT 1")]
    assert [item.id for item in select(rows[:2], [1.0, 0.99], REFERENCE, 10, 1)] == ["000"]
    (found,) = select(rows, [1.0, 0.99, 0.98], REFERENCE, 10, 1)
    assert found.id == "002" and found.label == "SELECT 1"


def test_a_rare_topic_is_drawn_as_often_as_a_frequent_one():
    frequent = [row(i, f"how many gift cards expired in month {i}") for i in range(90)]
    rare = [row(100 + i, f"상품권 {i}장의 총액은 얼마예요") for i in range(10)]
    found = select([*frequent, *rare], [0.99] * 90 + [0.98] * 10, REFERENCE, 40, 1)
    assert len(found) == 40
    assert sum("상품권" in item.prompt for item in found) == 10
    assert {item.topic for item in found if "상품권" in item.prompt}.isdisjoint(
        item.topic for item in found if "gift" in item.prompt
    )


def test_topics_need_rows_and_common_parts():
    assert topics_of(["a"] * 10, 1) == [0] * 10
    assert topics_of([chr(0xAC00 + 7 * index) for index in range(60)], 1) == [0] * 60
