"""The gate: what a candidate has to show, leg by leg. All legs have to pass.

A leg is a dict, and stands so in verdict.json:

    name, kind, passed, reason     what was judged, how it ended, and why in a sentence, which names the recipe's key
                                   where the leg did not pass
    value, baseline                mean score (or perplexity, bytes, seconds, share) of the candidate and of its rival
    rival                          `champion`, `base`, or "" for a leg that compares with a number of the recipe
    difference, stderr, noise      of the scores, value - baseline: its error with the noise in it, and the noise alone
    lower, threshold               the lower end of the one-sided interval of the difference has to be above the
                                   threshold; for limits and floors `value` is held against the threshold
    n, unpaired, p, confidence     prompts compared and left out, one-sided p-value, confidence that is asked for

What does not apply is null. A set that must rise and one that must not fall are one test with two thresholds: the
difference has to be above + min_improvement, or above - max_forgetting, beyond its error (non-inferiority: Rothmann,
Wiens and Chan, Design and Analysis of Non-Inferiority Trials, 2011). To ask for no fall at all would refuse one of two
candidates that lost nothing; to ask only that no fall be proven would pass everything on a set of ten prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bloomery.components.core.artifact import Manifest
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.promotion.comparison import Comparison, compare
from bloomery.components.promotion.config import GateConfig

Leg = dict[str, Any]
Rows = list[dict[str, Any]]
NO_LOSS = {"repeated", "in_evaluation_set"}
"""Why rows of tasks are left out that could be asked: they stand there once already, or would be measured twice."""
KEYS = {
    "task": "min_improvement",
    "set": "confidence",
    "forgetting": "max_forgetting",
    "safety": "max_safety_drop",
}
"""The setting by which the scores of each kind of leg are judged."""
COPIES = {"exact_duplicate", "near_duplicate", "semantic_duplicate"}
"""Why documents and chats are dropped that say what another says."""


def judge(gate: GateConfig, tasks: Tasks, candidate: Rows, base: Rows, champion: Rows) -> list[Leg]:
    """The legs on the models' eval_result/2 rows, in the order of the tasks; repeats measure the noise alone."""
    legs: list[Leg] = []
    domain = [name for name, task in tasks.configs.items() if task.role == "domain"]
    # Texts show what a model is for where no task has answers: continued pre-training alone is judged by them.
    texts_alone = all(tasks.is_scored_by_likelihood(name) for name in domain)
    for name, task in tasks.configs.items():
        new, old, best = (_by_set(rows, name) for rows in (candidate, base, champion))
        splits = sorted({*new, *old, *best})
        rivals = {"base": old} | ({"champion": best} if best else {})
        best_rival = list(rivals)[-1]
        if task.role == "domain" and not tasks.is_scored_by_likelihood(name):
            legs += _domain_legs(gate, name, new, rivals[best_rival], best_rival, splits)
        elif task.role == "domain" and texts_alone:
            for split in splits:
                pair = (f"{name}.{split}", new.get(split, []), rivals[best_rival].get(split, []), best_rival)
                legs.append(_perplexity_leg(gate, "task", *pair))
        elif task.role in ("general", "safety"):
            is_text = tasks.is_scored_by_likelihood(name)
            margin = gate.max_safety_drop if task.role == "safety" else gate.max_forgetting
            kind = "safety" if task.role == "safety" else "forgetting"
            for split in splits:
                for rival, sets in rivals.items():
                    pair = (f"{name}.{split}", new.get(split, []), sets.get(split, []), rival)
                    if is_text:
                        legs.append(_perplexity_leg(gate, kind, *pair))
                    else:
                        legs.append(_score_leg(gate, kind, *pair, threshold=-margin))
        legs += [
            _floor_leg(f"{name}.{split}", new.get(split, []), gate.min_score[f"{name}.{split}"])
            for split in splits
            if f"{name}.{split}" in gate.min_score
        ]
    judged = {leg["name"] for leg in legs}
    for key, floor in gate.min_score.items():
        if f"{key} floor" not in judged:  # tasks of lm-eval, which are none of the recipe
            legs.append(_floor_leg(key, [row for row in candidate if f"{row['task']}.{row['split']}" == key], floor))
    if not any(leg["kind"] == "task" for leg in legs):
        reason = "no domain task has an evaluation set, so nothing can show that the candidate is better"
        legs.append(_leg("a domain task", "task", False, reason))
    return legs


def limit_legs(gate: GateConfig, num_bytes: int, variant: dict[str, Any]) -> list[Leg]:
    """The limits of the recipe: bytes of the weights, and the latencies of the chosen row of variants.json."""
    measured = {
        "bytes on disk": ("max_bytes", num_bytes),
        "prefill seconds": ("max_prefill_seconds", variant.get("prefill_seconds")),
        "decode seconds per token": ("max_decode_seconds_per_token", variant.get("decode_seconds_per_token")),
    }
    return [
        _limit_leg(name, "limit", value, float(limit), key)
        for name, (key, value) in measured.items()
        if (limit := getattr(gate, key)) is not None
    ]


def data_legs(
    gate: GateConfig,
    curated: Manifest | None,
    unique: Manifest | None,
    tasks: Manifest,
    *,
    chats: Counter[str] | None = None,
    copies: Mapping[str, Counter[str]] | None = None,
) -> list[Leg]:
    """What is said of the data that was learnt from, where there are any: by the manifests of the curated and of the
    unique documents, by that of the tasks of rows that ask nothing, by `chats`, the rows of chats and pairs that
    chat_curation read, counted by why they were dropped ("": kept), and by `copies`, the same of dedup's documents by
    source."""
    legs = [] if curated is None else [_rejected_leg(gate, "rejected share of rows", curated.dropped, curated.rows_in)]
    if chats is not None:
        legs.append(_rejected_leg(gate, "rejected share of chats and pairs", chats, chats.total()))
        legs.append(_copies_leg(gate, "copies among chats and pairs", {"chats and pairs": chats}))
    if set(tasks.dropped) - NO_LOSS:
        legs.append(_rejected_leg(gate, "lost share of the tasks' rows", tasks.dropped, tasks.rows_in))
    if copies is not None:
        legs.append(_copies_leg(gate, "copies among the documents of a source", copies))
    if gate.decontaminated and unique is not None:
        legs.append(_decontaminated_leg(unique, tasks.digest))
    return legs


def _rejected_leg(gate: GateConfig, name: str, dropped: Mapping[str, int], num_rows: int) -> Leg:
    rejected = sum(count for reason, count in dropped.items() if reason not in {"", *NO_LOSS, *COPIES})
    share = rejected / num_rows if num_rows else 1.0
    return _limit_leg(name, "data", share, gate.max_reject_share, "max_reject_share")


def _copies_leg(gate: GateConfig, name: str, rows_of: Mapping[str, Counter[str]]) -> Leg:
    """No source lost more to copies than the limit; the leg tells of the one that lost most."""
    found = {source: (sum(rows[reason] for reason in COPIES), rows.total()) for source, rows in rows_of.items()}
    source, (num, total) = max(found.items(), key=lambda item: item[1][0] / max(1, item[1][1]), default=("any", (0, 0)))
    limit = gate.max_duplicate_share
    reason = f"{num} of {total} rows of {source} were dropped as copies; at most {limit:.4g} of them are accepted"
    passed = num <= limit * total
    return _leg(name, "data", passed, reason, "max_duplicate_share", value=num / max(1, total), threshold=limit)


def _decontaminated_leg(unique: Manifest, tasks_digest: str) -> Leg:
    same = unique.inputs.get("tasks") == tasks_digest
    removed = unique.dropped.get("contaminated", 0)
    found = "no decontamination" if "tasks" not in unique.inputs else "a decontamination against other tasks"
    reason = (
        f"{removed} of {unique.rows_in} documents held a prompt of these evaluation sets and were removed"
        if same
        else f"the documents went through {found}: run dedup against the tasks that the gate judges by"
    )
    return _leg("decontaminated", "data", same, reason, "decontaminated", value=float(removed))


def _domain_legs(
    gate: GateConfig, task: str, new: dict[str, Rows], old: dict[str, Rows], rival: str, splits: list[str]
) -> Iterator[Leg]:
    """The task must be better over all its sets, and no set of it shown to be worse.

    One test of all prompts sees a smaller improvement than one for each set, all of which would have to pass.
    `<set>+<perturbation>` asks the questions of `<set>` again, so it does not count as more prompts.
    """
    plain = [split for split in splits if "+" not in split]
    ours, theirs = ([row for split in plain for row in sets.get(split, [])] for sets in (new, old))
    yield _score_leg(gate, "task", task, ours, theirs, rival, threshold=gate.min_improvement)
    for split in splits if len(splits) > 1 else []:
        yield _not_worse_leg(gate, f"{task}.{split}", new.get(split, []), old.get(split, []), rival)


def _score_leg(gate: GateConfig, kind: str, name: str, new: Rows, old: Rows, rival: str, *, threshold: float) -> Leg:
    """The difference is above `threshold` beyond its error."""
    name, found = f"{name} against {rival}", compare(new, old)
    if found is None:
        return _unpaired_leg(name, kind, rival, new)
    p = found.p_above(threshold)
    passed = p < 1 - gate.confidence
    told = (
        f"{_percent(found.value)} against {_percent(found.baseline)} of the {rival} on {found.num_prompts} prompts: "
        f"{_points(found.difference)}, with {gate.confidence:.0%} confidence "
        f"{_points(found.lower(gate.confidence))} or better; more than {_points(threshold)} is asked for"
    )
    if not passed and found.difference > threshold:
        told += f", and the set is too small to show it{_enough(found, threshold, gate.confidence)}"
    return _compared(name, kind, rival, found, gate, threshold, p, passed, told, KEYS[kind])


def _not_worse_leg(gate: GateConfig, name: str, new: Rows, old: Rows, rival: str) -> Leg:
    """No fall is shown: a part of a task whose improvement is proven as a whole has too few prompts for more."""
    name, found = f"{name} not worse than {rival}", compare(new, old)
    if found is None:
        return _unpaired_leg(name, "set", rival, new)
    p = found.p_below(0.0)
    passed = p >= 1 - gate.confidence
    told = (
        f"{_percent(found.value)} against {_percent(found.baseline)} of the {rival} on {found.num_prompts} prompts: "
        f"{_points(found.difference)}, {'no' if passed else 'a'} fall beyond its error of {_points(found.stderr)[1:]}"
    )
    return _compared(name, "set", rival, found, gate, 0.0, p, passed, told, KEYS["set"])


def _perplexity_leg(gate: GateConfig, kind: str, name: str, new: Rows, old: Rows, rival: str) -> Leg:
    """The log-likelihood of a token fell by less than the log of the ratio beyond its error; of a `task`, it rose."""
    name, found = f"{name} perplexity against {rival}", compare(new, old)
    if found is None:
        return _unpaired_leg(name, kind, rival, new)
    ratio = 1.0 if kind == "task" else gate.max_perplexity_ratio
    threshold = -math.log(ratio)
    p = found.p_above(threshold)
    passed = p < 1 - gate.confidence
    worst = math.exp(-found.lower(gate.confidence))
    told = (
        f"perplexity {math.exp(-found.value):.4g} against {math.exp(-found.baseline):.4g} of the {rival} on "
        f"{found.num_prompts} texts: {math.exp(-found.difference):.3f} times, with {gate.confidence:.0%} confidence "
        f"{worst:.3f} times or less; less than {ratio:g} times is asked for"
    )
    key = "confidence" if kind == "task" else "max_perplexity_ratio"
    leg = _compared(name, kind, rival, found, gate, threshold, p, passed, told, key)
    return {**leg, "value": math.exp(-found.value), "baseline": math.exp(-found.baseline)}


def _floor_leg(name: str, rows: Rows, floor: float) -> Leg:
    scores = [row["score"] for row in rows if row["repeat"] == 0]
    if not scores:
        reason = "there is no such evaluation set; check the key of promotion.gate.min_score"
        return _leg(f"{name} floor", "floor", False, reason, "min_score", threshold=floor)
    value, stderr = mean_stderr(scores)
    passed = value >= floor
    reason = f"{_percent(value)} on {len(scores)} prompts; at least {_percent(floor)} is asked for"
    measured = {"value": value, "stderr": stderr, "threshold": floor, "n": len(scores)}
    return _leg(f"{name} floor", "floor", passed, reason, "min_score", **measured)


def _limit_leg(name: str, kind: str, value: float | None, limit: float, key: str) -> Leg:
    if value is None:
        return _leg(name, kind, False, "not measured, and the recipe sets a limit", key, threshold=limit)
    reason = f"{value:.4g}; at most {limit:.4g} is accepted"
    return _leg(name, kind, value <= limit, reason, key, value=float(value), threshold=limit)


def _unpaired_leg(name: str, kind: str, rival: str, new: Rows) -> Leg:
    who = f"the {rival}" if new else "the candidate"
    return _leg(name, kind, False, f"{who} has no answer to any prompt of it, so nothing can be compared", rival=rival)


def _compared(
    name: str,
    kind: str,
    rival: str,
    found: Comparison,
    gate: GateConfig,
    threshold: float,
    p: float,
    passed: bool,
    told: str,
    key: str,
) -> Leg:
    if found.num_unpaired:
        told += f"; {found.num_unpaired} prompts that only one of the two answered are left out"
    return _leg(
        name,
        kind,
        passed,
        told,
        key,
        rival=rival,
        value=found.value,
        baseline=found.baseline,
        difference=found.difference,
        stderr=found.stderr,
        noise=found.noise,
        lower=found.lower(gate.confidence),
        threshold=threshold,
        n=found.num_prompts,
        unpaired=found.num_unpaired,
        p=p,
        confidence=gate.confidence,
    )


def _leg(name: str, kind: str, passed: bool, reason: str, key: str = "", **numbers: Any) -> Leg:
    """A leg; where it did not pass it names the `key` of the gate by which, if there is one."""
    fields = ("rival", "value", "baseline", "difference", "stderr", "noise", "lower", "threshold")
    fields += ("n", "unpaired", "p", "confidence")
    empty: Leg = dict.fromkeys(fields) | {"rival": ""}
    # JSON has no infinity and no NaN: the error of a single prompt is unknown, and stands as null.
    finite = {key: value for key, value in numbers.items() if not isinstance(value, float) or math.isfinite(value)}
    told = f"{name}: {reason}" + (f" (promotion.gate.{key})" if key and not passed else "")
    return {"name": name, "kind": kind, "passed": bool(passed), "reason": told, **empty, **finite}


def _enough(found: Comparison, threshold: float, confidence: float) -> str:
    """How many prompts would show the difference, were it the true one: the error falls with their root."""
    missing = found.difference - found.lower(confidence)
    if not math.isfinite(missing):
        return ""
    return f": about {math.ceil(found.num_prompts * (missing / (found.difference - threshold)) ** 2):,} prompts would"


def _by_set(rows: Rows, task: str) -> dict[str, Rows]:
    sets: dict[str, Rows] = {}
    for row in rows:
        if row["task"] == task:
            sets.setdefault(row["split"], []).append(row)
    return sets


def _percent(score: float) -> str:
    return f"{100 * score:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
