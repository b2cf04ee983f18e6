"""What is forgotten for what is learnt, by reinforcement and by fine-tuning that go on from one model (RL's Razor,
arXiv 2509.04259, measures it so at 3 B parameters and more).

    python tests/benchmarks/forgetting.py [ARM …]

The model is the quickstart's after its first fine-tuning. Each arm trains it further, by several learning rates and
without any general rows, which hold back what is to be seen here: on the labelled questions, on its own right answers
to further ones beside them, or by `grpo` on these. Writes forgetting.json: of each the points gained on the domain's
test questions, those lost on the general skills and of refusals, paired by prompt, and the nats a token that general
text became less likely by.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import quickstart_runs
from surrounding import surrounding

from bloomery.pipelines import run_outputs
from bloomery.pipelines.scores import compare

SHARED = {"optimizer": "muon", "batch_size": 16, "max_length": 192}
TUNED = {"as": "further", "tasks": ["shop_sql"], "epochs": 2, "num_validations": 0, "keep": "last", **SHARED}
GRPO = {**SHARED, "as": "further", "epochs": 1, "batch_size": 64}
ARMS: dict[str, list[Any]] = {
    **{f"sft, {rate:g}": [{"sft": {**TUNED, "learning_rate": rate}}] for rate in (3e-4, 1e-3)},
    **{
        f"own right answers, {rate:g}": [
            {"rejection_sampling": {"num_samples": 4, "temperature": 0.7}},
            {"sft": {**TUNED, "learning_rate": rate}},
        ]
        for rate in (3e-4, 1e-3)
    },
    **{f"grpo, {rate:g}": [{"grpo": {**GRPO, "learning_rate": rate}}] for rate in (5e-5, 2e-4)},
    "grpo of 32 prompts a step, 0.0005": [{"grpo": {**GRPO, "batch_size": 256, "epochs": 3, "learning_rate": 5e-4}}],
}


def measured(further: list[Any]) -> dict[str, Any]:
    """Run the chain to its first fine-tuning and then `further`, and compare what it ends with with the model of that
    fine-tuning."""
    chosen = quickstart_runs.recipe("forgetting", "sft")
    started = time.perf_counter()
    run = quickstart_runs.run({**chosen, "stages": [*chosen["stages"], *further]})
    _, finished, outputs = run_outputs.read(run)
    models = run_outputs.results(outputs)

    def change(task: str) -> dict[str, float]:
        after, before = ([row for row in models[name] if row["task"] == task] for name in ("further", "sft"))
        found = compare(after, before)
        assert found
        return {
            "before": round(sum(row["score"] for row in before) / len(before), 4),
            "change": round(found.difference, 4),
            "stderr": round(found.stderr, 4),
            "p": round(found.p, 5),
            "n": found.n,
        }

    own = {key.split("/")[-1]: value for key, value in finished["further"]["metrics"].items()}
    return {
        "domain": change("shop_sql"),
        "general_skills": change("general_skills"),
        "refusals": change("safety"),
        "general_text_nats": change("general_text"),
        "training": {key: own[key] for key in ("loss", "reward_first", "reward_last", "kl_last") if key in own},
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    file = Path(__file__).with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in sys.argv[1:] or ARMS:
        found[name] = {**measured(ARMS[name]), **surrounding()}
        print(name, json.dumps(found[name]), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
