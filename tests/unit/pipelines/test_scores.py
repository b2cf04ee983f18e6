"""Scores of a run against values worked out by hand."""

from __future__ import annotations

import pytest

from bloomery.components.core.errors import DataError
from bloomery.pipelines.scores import Scores


def _answers(model: str, scores: list[float], weights: list[float] | None = None) -> list[dict]:
    """One model's eval_result/2 rows: every second prompt is Korean."""
    metric = "log_likelihood" if weights else "accuracy"
    weights = weights or [1.0] * len(scores)
    shared = {"task": "t", "split": "test", "prompt": "p", "reference": "r", "response": model, "reason": ""}
    shared |= {"metric": metric, "repeat": 0}
    return [
        {"id": f"{i:02}", "group": ("en", "ko")[i % 2], "score": score, "weight": weight, **shared}
        for i, (score, weight) in enumerate(zip(scores, weights, strict=True))
    ]


def told(row: dict) -> dict[str, str]:
    return {rival: f"{cell.difference} p {cell.p}" for rival, cell in row["against"].items() if cell}


def test_differences_are_paired_and_their_p_values_adjusted():
    n = 8
    models = {"sft": [1] * 8, "base": [0] * n, "dpo": [1] * 7 + [0], "champion": [1, 1] + [0] * 6}
    scores = Scores({model: _answers(model, values) for model, values in models.items()}, {})
    rows = scores.parts()[0]["blocks"][0]["rows"]
    assert [(row["stage"], row["score"]) for row in rows] == [
        ("base", "0.0"),
        ("sft", "100.0"),
        ("dpo", "87.5"),
        ("champion", "25.0"),
    ]
    # McNemar: 8, 7, 6, 5, 2 and 1 prompts won, none lost: 2/256, 2/128, 2/64, 2/32, 1/2 and 1; Holm: times 6, 5, 4, 3,
    # then at most 1
    assert told(rows[0]) == {}
    assert told(rows[1]) == {"base": "+100.0 ± 0.0 p 0.047", "champion": "+75.0 ± 16.4 p 0.125"}
    assert told(rows[2]) == {
        "stage before": "−12.5 ± 12.5 p 1.000",
        "base": "+87.5 ± 12.5 p 0.078",
        "champion": "+62.5 ± 18.3 p 0.188",
    }
    assert told(rows[3]) == {"base": "+25.0 ± 16.4 p 1.000"}
    assert rows[2]["groups"] == ["100.0", "75.0"] and scores.final == "dpo"


def test_forgetting_is_told_skill_by_skill():
    tasks = {"t": {"role": "general", "verifier": {"kind": "exact"}}}
    scores = Scores({"base": _answers("base", [1] * 24), "sft": _answers("sft", [1, 0] * 12)}, tasks)
    found = scores.forgetting()
    assert found["stages"] == ["sft"]
    lost = {row["skill"]: (row["base"], row["cells"]["sft"].difference, row["cells"]["sft"].p) for row in found["rows"]}
    # all 12 Korean ones lost: 2 / 2¹², twice as the smaller of two
    assert lost == {"en": ("100.0", "+0.0 ± 0.0", "1.000"), "ko": ("100.0", "−100.0 ± 0.0", "<0.001")}
    assert [row["cells"]["sft"].significant for row in found["rows"]] == [False, True]
    with pytest.raises(DataError, match="No general task"):
        Scores({"base": _answers("base", [1])}, {}).forgetting()


def test_a_label_task_shows_what_was_taken_for_what():
    rows = [
        {**row, "reference": wanted, "response": got}
        for row, (wanted, got) in zip(_answers("sft", [1, 0, 0]), (("a", "a"), ("b", "a"), ("b", "x")), strict=True)
    ]
    (picture,) = Scores({"sft": rows}, {"t": {"role": "domain", "verifier": {"kind": "label"}}}).confusions()
    assert "b answered as a: 1 (50.0 %)" in picture and "b answered as (no label): 1 (50.0 %)" in picture


def test_perplexity_is_weighted_by_tokens():
    # -1 nat over 1 token, -3 a token over 3: mean -2.5, perplexity e^2.5; each better by 1: a factor of 1/e
    scores = Scores({"base": _answers("base", [-1, -3], [1, 3]), "cpt": _answers("cpt", [0, -2], [1, 3])}, {})
    part = scores.parts()[0]
    rows = part["blocks"][0]["rows"]
    assert part["title"] == "Perplexity" and [row["score"] for row in rows] == ["12.18", "4.482"]
    assert told(rows[1]) == {"base": "−63.2 % ± 0.0 p <0.001"}


def test_cards_mix_what_was_fixed_is_wrong_and_broke():
    n = 40
    base = [float(i < 4) for i in range(n)]
    final = [float(4 <= i < 30 or i == 3) for i in range(n)]
    cards = Scores({"base": _answers("base", base), "dpo": _answers("dpo", final)}, {}).cards()
    assert cards["counts"] == {"fixed": 26, "wrong": 10, "broken": 3, "right": 1} and cards["total"] == n
    kinds = [card["kind"] for card in cards["cards"]]
    assert [kinds.count(kind) for kind in ("fixed", "wrong", "broken")] == [4, 3, 3]
    assert {card["group"] for card in cards["cards"]} == {"en", "ko"}
    only_fixed = Scores({"base": _answers("base", [0] * n), "dpo": _answers("dpo", [1] * n)}, {}).cards()
    assert [card["kind"] for card in only_fixed["cards"]] == ["fixed"] * 10


def test_a_champion_that_answered_nothing_is_left_out():
    scores = Scores({"base": _answers("base", [0, 1]), "champion": [], "sft": _answers("sft", [1, 1])}, {})
    assert list(scores.sets["t", "test"]) == ["base", "sft"] and scores.final == "sft"
    assert scores.change(("t", "test"))["value"] == "50.0 % → 100.0 %"


def test_a_base_alone_has_nothing_beside_it():
    scores = Scores({"base": _answers("base", [0, 1])}, {})
    assert scores.final == "" and scores.change(("t", "test")) is None
    with pytest.raises(DataError, match="nothing to set side by side"):
        scores.cards()
