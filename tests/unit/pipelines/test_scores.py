"""Scores of a run against values worked out by hand."""

from __future__ import annotations

import pytest

from bloomery.components.core.errors import DataError
from bloomery.pipelines.scores import Scores


def _answers(model: str, scores: list[float], weights: list[float] | None = None) -> list[dict]:
    """One model's eval_result/2 rows: every second prompt is Korean."""
    weights = weights or [1.0] * len(scores)
    shared = {"task": "t", "split": "test", "prompt": "p", "reference": "r", "response": model, "reason": ""}
    return [
        {"id": f"{i:02}", "group": ("en", "ko")[i % 2], "score": score, "weight": weight, **shared}
        for i, (score, weight) in enumerate(zip(scores, weights, strict=True))
    ]


def test_differences_are_paired_with_the_stage_before():
    scores = Scores(
        {
            "sft": _answers("sft", [1, 1, 1, 0]),
            "base": _answers("base", [0, 0, 0, 0]),
            "champion": _answers("champion", [1, 1, 0, 0]),
        },
        {},
    )
    rows = scores.parts()[0]["blocks"][0]["rows"]
    assert [(row["stage"], row["score"], row["difference"], row["against"], row["p"]) for row in rows] == [
        ("base", "0.0", "–", "–", "–"),
        ("sft", "75.0", "+75.0 ± 25.0", "base", "0.250"),
        ("champion", "50.0", "−25.0 ± 25.0", "sft", "1.000"),
    ]
    assert rows[1]["groups"] == ["100.0", "50.0"] and scores.final == "sft"


def test_perplexity_is_weighted_by_tokens():
    # -1 nat over 1 token, -3 a token over 3: mean -2.5, perplexity e^2.5; each better by 1: a factor of 1/e
    scores = Scores({"base": _answers("base", [-1, -3], [1, 3]), "cpt": _answers("cpt", [0, -2], [1, 3])}, {})
    part = scores.parts()[0]
    rows = part["blocks"][0]["rows"]
    assert part["title"] == "Perplexity" and [row["score"] for row in rows] == ["12.18", "4.482"]
    assert rows[1]["difference"] == "−63.2 % ± 0.0" and rows[1]["p"] == "<0.001"


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
