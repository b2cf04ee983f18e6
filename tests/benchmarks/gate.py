"""How often the gate errs: models that are no better promoted, and models that are three points better refused.

    python tests/benchmarks/gate.py

The gate's own `judge` gets the rows that evaluation writes: 0/1 scores of n prompts, each with a difficulty of its
own, a candidate and a champion that answer a prompt differently with a given probability, and the champion's and the
candidate's repeats, in which a share of the prompts flips. Every other leg is left out: what they refuse comes on
top. Writes gate.json beside this file.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.promotion.comparison import binary_stderr
from bloomery.components.promotion.config import GateConfig
from bloomery.components.promotion.gate import judge

GATE = GateConfig()
FIRST, AGAIN = 900, 965
"""Prompts that the quickstart's task leg is judged by: 700 and 200 of its two sets, and as many with the 65 or so
drifted ones of a retraining."""
ACCURACY = 0.6
"""Of the champion: the quickstart's on its test questions."""
REFINED, RETRAINED = 0.04, 0.2
"""Share of the answers that two versions disagree on, right or wrong: measured on the quickstart's 500 questions.
Another pass of preference optimisation over a model changes 2.4 to 4.0 % (three pairs of stages), a whole training
from the base with other settings or data 16 to 28 % (21 pairs of runs of seven kinds, without one that failed)."""
CONTINUED = 0.091
"""Two trainings that went on from the champion (`start_from`; the quickstart's, on drifted questions, judged by 762
and 769 prompts with the new ones) took 43 of 1,400 right answers away and gave 279. One that takes as many away and is
three points better differs on this share."""
FLIPS = 0.01
"""Share of the prompts whose answer changes when they are answered again in other batches."""
TRUE_POINTS = 0.03


class Domain:
    """A `tasks/1` of one domain task, as `judge` reads it."""

    configs = {"sql": TaskConfig.model_validate({"role": "domain", "splits": {}, "verifier": {"kind": "exact"}})}

    def is_scored_by_likelihood(self, task: str) -> bool:
        return False


def rows(scores: np.ndarray) -> list[dict[str, Any]]:
    """eval_result/2 rows of scores[repeat, prompt], with the fields that the gate reads."""
    return [
        {"task": "sql", "split": "test", "id": prompt, "score": score, "weight": 1.0, "repeat": repeat}
        for repeat, answers in enumerate(scores.tolist())
        for prompt, score in enumerate(answers)
    ]


def pair(random: np.random.Generator, n: int, differing: float, better: float) -> tuple[np.ndarray, np.ndarray]:
    """0/1 answers [prompt] of candidate and champion whose expected accuracies differ by `better`.

    Prompts differ in difficulty (a Beta distribution around ACCURACY), and which ones the two answer differently is
    drawn with it: hopeless and easy prompts are answered alike.
    """
    difficulty = random.beta(2 * ACCURACY, 2 * (1 - ACCURACY), n)
    champion = random.random(n) < difficulty
    contested = difficulty * (1 - difficulty)
    change = np.minimum(1, differing * contested / contested.mean())
    changed = random.random(n) < change
    # Of the prompts that change, as many are won as lost but for what the candidate is better by.
    won = random.random(n) < 0.5 + better / (2 * differing)
    return np.where(changed, won, champion).astype(float), np.where(changed, ~won, champion).astype(float)


def evaluated(random: np.random.Generator, answers: np.ndarray, flips: float, shift: float) -> np.ndarray:
    """Scores [repeat, prompt] of the repeats that the gate asks for; `shift` moves all prompts of one repeat alike."""
    scores = []
    for _ in range(GATE.noise_repeats):
        moved = random.normal(0, shift) if shift else 0.0
        flipped = random.random(answers.size) < flips
        again = np.where(flipped, 1 - answers, answers)
        turned = random.random(answers.size) < abs(moved)
        scores.append(np.where(turned, float(moved > 0), again))
    return np.array(scores)


def promoted(
    seed: int, trials: int, n: int, differing: float, better: float, *, flips: float = FLIPS, shift: float = 0.0
) -> dict[str, float]:
    """Share of `trials` candidates whose task leg passes, with its binomial error."""
    random, passed, seen = np.random.default_rng(seed), 0, 0.0
    base = rows(np.zeros((1, n)))
    for _ in range(trials):
        new, old = pair(random, n, differing, better) if differing else [(random.random(n) < ACCURACY) * 1.0] * 2
        ours, theirs = (evaluated(random, answers, flips, shift) for answers in (new, old))
        seen += float((ours[0] != theirs[0]).mean()) / trials
        leg = next(leg for leg in judge(GATE, Domain(), rows(ours), base, rows(theirs)) if leg["kind"] == "task")
        passed += leg["passed"]
    share = passed / trials
    return {"promoted": share, "stderr": math.sqrt(share * (1 - share) / trials), "differing": round(seen, 3)}


def power(n: int, differing: float, trials: int = 20_000, seed: int = 0) -> float:
    """Share of candidates three points better that pass, by the gate's arithmetic over win and loss counts alone."""
    random = np.random.default_rng(seed)
    half = (differing - TRUE_POINTS) / 2
    wins, losses = random.multinomial(n, [half + TRUE_POINTS, half, 1 - differing], trials).T[:2]
    excess = (wins - losses - 1) / n
    return float((excess > t.ppf(GATE.confidence, n - 1) * binary_stderr(wins, losses, n)).mean())


def prompts_needed(differing: float, wanted: float = 0.8) -> int:
    """The smallest n, in steps of 25, from which three points are seen with probability `wanted`."""
    return 25 * bisect.bisect_left(range(800), wanted, lo=2, key=lambda step: power(25 * step, differing))


def main() -> None:
    started = time.process_time()
    equal = {
        "the same model": promoted(1, 1000, FIRST, 0.0, 0.0),
        "refined, no better": promoted(2, 1000, FIRST, REFINED, 0.0),
        "retrained, no better": promoted(3, 1000, FIRST, RETRAINED, 0.0),
        "retrained, no better, noise common to all prompts": promoted(4, 1000, FIRST, RETRAINED, 0.0, shift=0.02),
    }
    better = {
        "refined": {str(n): promoted(5, 1000, n, REFINED, TRUE_POINTS) for n in (500, FIRST)},
        "continued": {str(n): promoted(7, 1000, n, CONTINUED, TRUE_POINTS) for n in (700, FIRST, AGAIN)},
        "retrained": {str(n): promoted(6, 1000, n, RETRAINED, TRUE_POINTS) for n in (FIRST, 1500)},
    }
    curve = {
        str(differing): {str(n): round(power(n, differing), 3) for n in (200, 500, 700, 1000, 1500, 2000)}
        for differing in (0.04, 0.06, 0.1, 0.15, 0.2, 0.25)
    }
    found = {
        "gate": GATE.model_dump(mode="json"),
        "accuracy": ACCURACY,
        "flips": FLIPS,
        "trials": 1000,
        "prompts": FIRST,
        "equal_models_promoted": equal,
        "three_points_better_promoted": better,
        "power_by_differing_share_and_prompts": curve,
        "prompts_for_power_0.8": {differing: prompts_needed(float(differing)) for differing in curve},
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
