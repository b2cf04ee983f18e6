import random

import pytest

from bloomery.components.synthetic_data.recombine import numbers_in, recombine, slots

ENTITIES = {
    "city": {"Busan": ["Busan", "부산"], "Jeju": ["Jeju", "제주"]},
    "month": {"2024-01": ["January", "1월"], "2024-12": ["December", "12월"]},
}


def names(question, answer, numbers=("5", "7")):
    return [question[slot.start : slot.end] for slot in slots(question, answer, ENTITIES, list(numbers))]


@pytest.mark.parametrize(
    ("question", "answer", "wanted"),
    [
        ("Orders from busan in January?", "city = 'Busan' AND day LIKE '2024-01%'", {"busan", "January"}),
        ("1월 부산에서 온 주문 5건", "city = 'Busan' AND day >= '2024-01-01' LIMIT 5", {"1월", "부산", "5"}),
        ("Orders from Busan", "SELECT COUNT(*) FROM orders", set()),
        ("Busanites", "city = 'Busan'", set()),
        ("12월 주문", "day LIKE '2024-12%'", {"12월"}),
        ("more than 1.5", "price > 5", set()),
    ],
)
def test_a_slot_is_what_question_and_answer_share(question, answer, wanted):
    assert set(names(question, answer)) == wanted


def test_question_and_answer_change_together_and_keep_the_language():
    rng = random.Random(0)
    found = {recombine("부산 5건", "city = 'Busan' LIMIT 5", ENTITIES, ["5", "7", "10"], rng) for _ in range(50)}
    assert found == {
        (f"{name} {number}건", f"city = '{value}' LIMIT {number}")
        for name, value in (("부산", "Busan"), ("제주", "Jeju"))
        for number in ("5", "7")
    }


def test_two_values_may_change_places():
    entities = {"city": {"A": ["A"], "B": ["B"]}}
    found = {recombine("A or B", "IN ('A', 'B')", entities, [], random.Random(seed)) for seed in range(40)}
    assert ("B or A", "IN ('B', 'A')") in found
    assert all(question.replace(" or ", "', '") == answer[5:-2] for question, answer in found)


def test_numbers_are_those_that_stand_alone():
    assert numbers_in(["LIMIT 5", "total > 250 AND day < '2024-08-01'", "x1"]) == ["250", "5"]
