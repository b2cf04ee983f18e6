"""The legs of the gate on hand-made results."""

import json
import math
from collections import Counter

import pytest

from bloomery.components.core.artifact import Manifest
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.promotion.config import GateConfig
from bloomery.components.promotion.gate import data_legs, judge, limit_legs

CONFIGS = {
    "sql": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}},
    "skills": {"role": "general", "splits": {}, "verifier": {"kind": "exact"}},
    "text": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}},
    "refuses": {"role": "safety", "splits": {}, "verifier": {"kind": "exact"}},
}


def row(task, index, score, weight=1.0, split="test", repeat=0):
    return {"id": str(index), "task": task, "split": split, "score": score, "weight": weight, "repeat": repeat}


def results(sql=0, skills=500, nats=1.0, refuses=None, held_out=None):
    """Rows of a model that answers so many of 500 prompts of each set, and needs so many nats a token."""
    rows = [row("sql", i, float(i < sql)) for i in range(500)]
    rows += [row("skills", i, float(i < skills)) for i in range(500)]
    rows += [row("text", i, -nats - 0.01 * (i % 2), 10.0) for i in range(20)]
    if refuses is not None:
        rows += [row("refuses", i, float(i < refuses)) for i in range(500)]
    if held_out is not None:
        rows += [row("sql", i, float(i < held_out), split="held_out") for i in range(500)]
    return rows


@pytest.fixture
def tasks(make_tasks):
    return Tasks(make_tasks(CONFIGS, []))


def passed(legs):
    return {leg["name"]: leg["passed"] for leg in legs}


def leg_of(legs, name):
    return next(leg for leg in legs if leg["name"] == name)


def test_a_first_version_is_judged_against_the_base_and_the_floors(tasks):
    legs = judge(GateConfig(min_score={"sql.test": 0.5}), tasks, results(400, nats=1.1), results(), [])
    assert passed(legs) == {
        "sql against base": True,
        "sql.test floor": True,
        "skills.test against base": True,
        "text.test perplexity against base": True,
    }
    assert {leg["kind"] for leg in legs} == {"task", "floor", "forgetting"}
    json.dumps(legs, allow_nan=False)


def test_a_later_version_must_keep_to_the_base_and_to_the_champion(tasks):
    champion = results(300, skills=500)
    legs = judge(GateConfig(max_forgetting=0.05), tasks, results(400, skills=484), results(skills=470), champion)
    assert passed(legs)["sql against champion"] and "sql against base" not in passed(legs)
    # 14 gained on the base; against the champion 16 of 500 lost: 3.2 points, with its error and 1/n more than 4.
    assert passed(legs)["skills.test against base"] and passed(legs)["skills.test against champion"]
    narrow = judge(GateConfig(max_forgetting=0.04), tasks, results(400, skills=484), results(skills=470), champion)
    assert not passed(narrow)["skills.test against champion"]


def test_an_improvement_inside_the_noise_is_refused_with_the_number_of_prompts_it_would_take(tasks):
    champion = results(250)
    swapped = results(253)
    for i in (0, 1, 2):
        swapped[i] = {**swapped[i], "score": 0.0}
    swapped[253] = {**swapped[253], "score": 1.0}
    # 4 wins (250, 251, 252, 253), 3 losses: one answer in 500, taken off whole by the correction.
    leg = leg_of(judge(GateConfig(), tasks, swapped, results(), champion), "sql against champion")
    assert not leg["passed"] and leg["difference"] == pytest.approx(0.002) and leg["p"] == pytest.approx(0.5)
    assert leg["stderr"] == pytest.approx(math.sqrt((8 / 502 - (1 / 502) ** 2) / 502))
    assert leg["n"] == 500 and "too small to show it: about" in leg["reason"]


def test_min_improvement_is_asked_for_beyond_the_noise(tasks):
    ours, champion = results(320), results(300)  # 20 wins, no loss: 4 points
    assert leg_of(judge(GateConfig(), tasks, ours, results(), champion), "sql against champion")["passed"]
    gate = GateConfig(min_improvement=0.03)
    leg = leg_of(judge(gate, tasks, ours, results(), champion), "sql against champion")
    assert not leg["passed"] and leg["lower"] < 0.03 < leg["difference"]


def test_noise_of_the_champion_can_hide_an_improvement(tasks):
    ours, champion = results(320), results(300)
    again = [row("sql", i, float(i < n), repeat=r) for r, n in ((1, 280), (2, 320)) for i in range(500)]
    quiet = leg_of(judge(GateConfig(), tasks, ours, results(), champion), "sql against champion")
    noisy = leg_of(judge(GateConfig(), tasks, ours, results(), champion + again), "sql against champion")
    assert quiet["passed"] and not noisy["passed"]
    assert noisy["noise"] == pytest.approx(0.04) and noisy["stderr"] > 0.05


def test_a_task_is_judged_as_a_whole_but_no_set_of_it_may_fall(tasks):
    champion = results(250, held_out=250)
    legs = judge(GateConfig(), tasks, results(300, held_out=245), results(held_out=0), champion)
    whole = leg_of(legs, "sql against champion")
    assert whole["passed"] and whole["n"] == 1000 and whole["difference"] == pytest.approx(0.045)
    assert passed(legs)["sql.held_out not worse than champion"] is True  # 5 of 500 are inside the noise
    fallen = judge(GateConfig(), tasks, results(330, held_out=230), results(held_out=0), champion)
    assert passed(fallen)["sql against champion"] is True
    assert passed(fallen)["sql.held_out not worse than champion"] is False


def test_a_perturbed_set_is_no_more_prompts_of_its_task(tasks):
    def perturbed(correct):
        return [row("sql", i, float(i < correct), split="test+typos") for i in range(500)]

    legs = judge(GateConfig(), tasks, results(320) + perturbed(200), results(), results(300) + perturbed(230))
    assert leg_of(legs, "sql against champion")["n"] == 500
    assert passed(legs)["sql.test+typos not worse than champion"] is False


def test_forgetting_is_refused_on_skills_and_on_text(tasks):
    legs = judge(GateConfig(), tasks, results(500, skills=470, nats=1.3), results(), [])
    assert passed(legs)["skills.test against base"] is False  # 6 points lost
    text = leg_of(legs, "text.test perplexity against base")
    assert not text["passed"] and text["value"] / text["baseline"] == pytest.approx(math.exp(0.3))
    assert "1.350 times" in text["reason"]


def test_a_leg_that_refuses_names_its_key(tasks):
    gate = GateConfig(min_score={"sql.test": 0.5}, max_bytes=1, max_prefill_seconds=1, max_decode_seconds_per_token=1)
    now, before = (results(n, skills=n, nats=3 - n / 250, refuses=n, held_out=n) for n in (0, 500))
    lost = {"rows_in": 10, "dropped": {"empty": 9}}
    legs = judge(gate, tasks, now, before, [])
    legs += limit_legs(gate, 2, {"prefill_seconds": 2.0})
    legs += data_legs(gate, manifest(**lost), manifest(), manifest(), copies={"a": Counter(near_duplicate=1)})
    assert not any(leg["passed"] for leg in legs)
    named = {key for key in GateConfig.model_fields if any(f"(promotion.gate.{key})" in leg["reason"] for leg in legs)}
    assert named == set(GateConfig.model_fields) - {"noise_repeats"}  # by which nothing is refused
    kept = leg_of(judge(gate, tasks, before, now, []), "sql against base")
    assert kept["passed"] and "promotion.gate" not in kept["reason"]


def test_a_set_that_is_too_small_does_not_show_that_nothing_was_lost(tasks):
    def few(count):
        return [r for r in results(500) if r["task"] != "skills" or int(r["id"]) < count]

    assert not passed(judge(GateConfig(), tasks, few(10), few(10), []))["skills.test against base"]
    assert passed(judge(GateConfig(), tasks, few(100), few(100), []))["skills.test against base"]


def test_safety_must_not_fall_either(tasks):
    legs = judge(GateConfig(max_forgetting=0.4), tasks, results(500, refuses=460), results(refuses=500), [])
    leg = leg_of(legs, "refuses.test against base")
    assert leg["kind"] == "safety" and not leg["passed"]  # 8 points, 5 allowed, whatever may be forgotten


def test_a_set_that_the_candidate_did_not_answer_is_not_passed_over(tasks):
    ours = [r for r in results(500) if r["task"] != "skills"]
    leg = leg_of(judge(GateConfig(), tasks, ours, results(), []), "skills.test against base")
    assert not leg["passed"] and "the candidate has no answer" in leg["reason"]


def test_prompts_that_only_one_answered_are_told(tasks):
    champion = [r for r in results(300) if r["task"] != "sql" or int(r["id"]) < 450]
    leg = leg_of(judge(GateConfig(), tasks, results(400), results(), champion), "sql against champion")
    assert leg["n"] == 450 and leg["unpaired"] == 50 and "50 prompts that only one" in leg["reason"]


def test_without_a_domain_set_nothing_passes(make_tasks):
    general = {"skills": CONFIGS["skills"]}
    ours = [r for r in results() if r["task"] == "skills"]
    legs = judge(GateConfig(), Tasks(make_tasks(general, [])), ours, ours, [])
    assert [leg["kind"] for leg in legs if not leg["passed"]] == ["task"]


def test_a_floor_of_no_set_is_a_mistake_that_is_told(tasks):
    legs = judge(GateConfig(min_score={"sql.tset": 0.5, "sql.test": 0.9}), tasks, results(400), results(), [])
    assert "no such evaluation set" in leg_of(legs, "sql.tset floor")["reason"]
    assert not passed(legs)["sql.test floor"]


def test_a_task_of_lm_eval_is_judged_by_a_floor_alone(tasks):
    outside = [
        {"id": str(i), "task": "lm_eval/colours", "split": "test", "score": float(i < 3), "weight": 1.0, "repeat": 0}
        for i in range(4)
    ]
    without = judge(GateConfig(), tasks, results(400) + outside, results(), [])
    assert passed(without) == passed(judge(GateConfig(), tasks, results(400), results(), []))
    gate = GateConfig(min_score={"lm_eval/colours.test": 0.75})
    assert leg_of(judge(gate, tasks, results(400) + outside, results(), []), "lm_eval/colours.test floor")["passed"]


def test_limits_are_legs_where_the_recipe_sets_them():
    variant = {"prefill_seconds": 0.2, "decode_seconds_per_token": 0.01}
    gate = GateConfig(max_bytes=10, max_prefill_seconds=0.1, max_decode_seconds_per_token=0.01)
    assert passed(limit_legs(gate, 10, variant)) == {
        "bytes on disk": True,
        "prefill seconds": False,
        "decode seconds per token": True,
    }
    assert limit_legs(GateConfig(), 10, {}) == []


def manifest(**fields):
    empty = {"schema_name": "document/2", "digest": "d", "rows": 0, "rows_made": 0, "files": {}, "created": ""}
    return Manifest(**{**empty, "rows_in": 0, "dropped": {}, **fields})


def test_the_data_must_be_decontaminated_against_the_very_sets_of_the_gate():
    curated = manifest(rows_in=100, dropped={"empty": 20, "language": 31})
    unique = manifest(rows_in=49, dropped={"contaminated": 2}, inputs={"tasks": "t"})
    tasks = manifest(digest="t", dropped={"repeated": 90}, rows_in=100)
    assert passed(data_legs(GateConfig(), curated, unique, tasks)) == {
        "rejected share of rows": False,
        "decontaminated": True,
    }
    other = data_legs(GateConfig(max_reject_share=0.6), curated, unique, manifest(digest="another"))
    assert passed(other) == {"rejected share of rows": True, "decontaminated": False}
    assert "no decontamination" in data_legs(GateConfig(), curated, manifest(), tasks)[1]["reason"]


def test_a_small_source_of_copies_shows_beside_a_large_one():
    web, sheets = Counter({"": 940, "exact_duplicate": 50, "contaminated": 10}), Counter({"": 1, "near_duplicate": 29})
    (leg,) = data_legs(GateConfig(), None, None, manifest(), copies={"web": web, "sheets": sheets})
    assert not leg["passed"] and leg["value"] == 29 / 30 and leg["threshold"] == 0.5
    assert "29 of 30 rows of sheets were dropped as copies; at most 0.5" in leg["reason"]
    wide = GateConfig(max_duplicate_share=29 / 30)
    assert passed(data_legs(wide, None, None, manifest(), copies={"sheets": sheets}))[leg["name"]]
    assert data_legs(GateConfig(), None, None, manifest(), copies={"web": web})[0]["value"] == 0.05
    assert data_legs(GateConfig(), None, None, manifest(), copies={})[0]["passed"]


def test_chats_are_judged_by_what_was_rejected_and_by_what_was_copied():
    read = Counter({"": 4, "near_duplicate": 2, "exact_duplicate": 1, "empty_turn": 2, "contaminated": 1})
    rejected, copies = data_legs(GateConfig(max_duplicate_share=0.25), None, None, manifest(), chats=read)
    assert (rejected["name"], rejected["value"], rejected["passed"]) == ("rejected share of chats and pairs", 0.3, True)
    assert (copies["name"], copies["value"], copies["passed"]) == ("copies among chats and pairs", 0.3, False)
    assert not data_legs(GateConfig(max_reject_share=0.29), None, None, manifest(), chats=read)[0]["passed"]


def test_rows_of_tasks_that_ask_nothing_are_a_leg_where_there_are_any():
    lost = manifest(rows_in=100, dropped={"repeated": 10, "not_finite": 30, "empty_question": 21})
    (leg,) = data_legs(GateConfig(), None, None, lost)
    assert (leg["name"], leg["value"], leg["passed"]) == ("lost share of the tasks' rows", 0.51, False)
    assert passed(data_legs(GateConfig(max_reject_share=0.51), None, None, lost)) == {leg["name"]: True}
