"""Promotion: the gate compares the candidate with the champion, and the registry moves only if every leg passes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

from bloomery.components.core import artifact, models, registry
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.statistics import mean_stderr, paired_difference
from bloomery.components.core.tasks import Tasks
from bloomery.components.promotion.config import GateConfig, PromotionConfig

logger = logging.getLogger(__name__)


def run(
    config: PromotionConfig,
    *,
    model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    candidate_results: Annotated[Path, Reads("eval_result/1")],
    base_results: Annotated[Path, Reads("eval_result/1")],
    champion_results: Annotated[Path, Reads("eval_result/1")],
    champion: Annotated[Path, Reads("model/1")],
    champion_version: Annotated[Path, Reads("registry/1")],
    verdict: Annotated[Path, Writes("verdict/1")],
) -> dict[str, float]:
    """Judge `model` by its evaluation against that of the champion and of the base; register and promote it if it
    passes.

    A candidate whose content is that of the champion is the champion: nothing is registered twice.
    Writes:  verdict (verdict.json: status, reason, model name, version and aliases, every leg with its numbers).
    Returns: promotion/promoted (1 or 0), promotion/legs, promotion/legs_passed.
    Raises:  GateError if another promotion came first; ServiceError if the registry does not answer.
    """
    known = Tasks(tasks)
    candidate, base, champ = (
        artifact.read_table(path, "eval_result/1").to_pylist()
        for path in (candidate_results, base_results, champion_results)
    )
    named = json.loads((champion_version / "champion.json").read_text())
    name, current = named["registered_model"], named["champion_version"]
    digest = artifact.read_manifest(model).digest
    legs = judge(config.gate, known, candidate, base, champ, models.num_bytes(model))
    failed = [leg for leg in legs if not leg["passed"]]
    unmeasured = not any(leg["kind"] == "task" for leg in legs)
    same = current is not None and artifact.read_manifest(champion).digest == digest

    version, status = None, "promoted"
    if same:
        version, reason = current, f"the candidate is the champion, version {current}: nothing to do"
    elif failed:
        status, reason = "rejected", "; ".join(leg["reason"] for leg in failed)
    elif unmeasured:
        status, reason = (
            "rejected",
            "no domain task has an evaluation set, so nothing shows that the candidate is better",
        )
    else:
        reason = f"all {len(legs)} legs passed"
        if registry.available():
            source = models.publish(model, config.models_uri)
            tags = {"digest": digest, **{f"inputs.{key}": value for key, value in _inputs(model).items()}}
            version = registry.register(name, source, {**tags, "verdict": reason})
            registry.promote(name, version, expected_champion=current)
    logger.info("%s: %s", status, reason)
    aliases = [registry.CANDIDATE, registry.CHAMPION] if version and status == "promoted" else []
    verdict.mkdir(parents=True, exist_ok=True)
    facts = {
        "status": status,
        "reason": reason,
        "model": {"name": name, "version": version, "aliases": aliases} if version else None,
        "candidate_digest": digest,
        "champion_version": current,
        "legs": legs,
    }
    artifact.write_atomically(verdict / "verdict.json", json.dumps(facts, indent=1, ensure_ascii=False))
    artifact.seal(verdict, "verdict/1")
    passed = float(len(legs) - len(failed))
    return {
        "promotion/promoted": float(status == "promoted"),
        "promotion/legs": float(len(legs)),
        "promotion/legs_passed": passed,
    }


def judge(
    gate: GateConfig,
    tasks: Tasks,
    candidate: list[dict[str, Any]],
    base: list[dict[str, Any]],
    champion: list[dict[str, Any]],
    num_bytes: int,
) -> list[dict[str, Any]]:
    """Every leg of the gate, in the order of the tasks, with its numbers and a reason that a person can read."""
    legs = []
    for (task, split), rows in _by_set(candidate).items():
        role = tasks.configs[task].role
        old = _by_set(base)[task, split]
        if tasks.is_scored_by_likelihood(task):
            if role == "general":
                legs.append(_perplexity_leg(f"{task}.{split}", rows, old, gate))
        elif role == "general":
            legs.append(_forgetting_leg(f"{task}.{split}", rows, old, gate))
        else:
            rival = _by_set(champion).get((task, split))
            legs.append(_task_leg(f"{task}.{split}", rows, rival or old, "champion" if rival else "base", gate))
            if f"{task}.{split}" in gate.min_score:
                legs.append(_floor_leg(f"{task}.{split}", rows, gate.min_score[f"{task}.{split}"]))
    if gate.max_bytes is not None:
        legs.append(
            _leg(
                "bytes on disk",
                "limit",
                float(num_bytes),
                None,
                None,
                None,
                float(gate.max_bytes),
                lambda: num_bytes <= gate.max_bytes,
            )
        )
    return legs


def _task_leg(
    name: str, new: list[dict[str, Any]], old: list[dict[str, Any]], rival: str, gate: GateConfig
) -> dict[str, Any]:
    """Improvement beyond the noise: the lower end of the one-sided interval of the paired difference is above the
    minimum."""
    value, baseline, difference, stderr = _compare(new, old)
    margin = gate.min_improvement + NormalDist().inv_cdf(gate.confidence) * stderr
    return _leg(
        f"{name} against {rival}", "task", value, baseline, difference, stderr, margin, lambda: difference > margin
    )


def _forgetting_leg(
    name: str, new: list[dict[str, Any]], old: list[dict[str, Any]], gate: GateConfig
) -> dict[str, Any]:
    value, baseline, difference, stderr = _compare(new, old)
    limit = -gate.max_forgetting
    return _leg(
        f"{name} against base", "forgetting", value, baseline, difference, stderr, limit, lambda: difference >= limit
    )


def _perplexity_leg(
    name: str, new: list[dict[str, Any]], old: list[dict[str, Any]], gate: GateConfig
) -> dict[str, Any]:
    value, baseline = _perplexity(new), _perplexity(old)
    ratio = value / baseline
    limit = gate.max_perplexity_ratio
    return _leg(
        f"{name} perplexity ratio to base", "forgetting", value, baseline, ratio, None, limit, lambda: ratio <= limit
    )


def _floor_leg(name: str, rows: list[dict[str, Any]], floor: float) -> dict[str, Any]:
    value, stderr = mean_stderr([row["score"] for row in rows])
    return _leg(f"{name} floor", "floor", value, None, None, stderr, floor, lambda: value >= floor)


def _leg(
    name: str,
    kind: str,
    value: float,
    baseline: float | None,
    difference: float | None,
    stderr: float | None,
    threshold: float,
    check: Callable[[], bool],
) -> dict[str, Any]:
    passed = bool(check())
    measured = value if difference is None else difference
    reason = f"{name}: {measured:.4g} {'meets' if passed else 'misses'} {threshold:.4g}"
    return {
        "name": name,
        "kind": kind,
        "value": value,
        "baseline": baseline,
        "difference": difference,
        "stderr": stderr,
        "threshold": threshold,
        "passed": passed,
        "reason": reason,
    }


def _compare(new: list[dict[str, Any]], old: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """(mean, baseline mean, mean difference, its standard error) over the prompts that both models answered."""
    before = {row["id"]: row["score"] for row in old}
    pairs = [(row["score"], before[row["id"]]) for row in new if row["id"] in before]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    difference, stderr, _ = paired_difference(ours, theirs)
    return mean_stderr(ours)[0], mean_stderr(theirs)[0], difference, stderr


def _perplexity(rows: list[dict[str, Any]]) -> float:
    return math.exp(-mean_stderr([row["score"] for row in rows], [row["weight"] for row in rows])[0])


def _by_set(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault((row["task"], row["split"]), []).append(row)
    return sets


def _inputs(model: Path) -> dict[str, str]:
    return artifact.read_manifest(model).inputs
