"""What continued pre-training forgets for what it learns, by the share that is replayed: the forgetting curve.

    python tests/benchmarks/replay.py [ARM …]

The chain is the quickstart's, to its continued pre-training. Each arm reads the same documents with another
`replay_share`, of texts alone or of texts and exercises; documents and questions are made once, and all arms take them
from the store. Writes replay.json: of each arm what was replayed, and of the model before (base) and after the domain's
perplexity, that of general text, and the general skills that are left, on the evaluation sets.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import quickstart_runs

from bloomery.pipelines import run_outputs

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5)
ARMS = {f"texts, {share:g}": {"replay_share": share} for share in SHARES}
ARMS |= {
    f"texts and exercises, {share:g}": {"replay_share": share, "replay_exercises": 0.5} for share in SHARES if share
}
MEASURES = {
    "domain_perplexity": "domain_text.test.perplexity",
    "general_perplexity": "general_text.test.perplexity",
    "general_skills": "general_skills.test.accuracy",
}


def measured(changes: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Run the chain with these settings of its last stage, and say what its model and the base are worth."""
    chosen = quickstart_runs.recipe("replay", "cpt")
    chosen["stages"][-1] = {"cpt": {**chosen["stages"][-1]["cpt"], **changes}}
    started = time.perf_counter()
    _, finished, _ = run_outputs.read(quickstart_runs.run(chosen, settings))
    own = {key.split("/")[-1]: value for key, value in finished["cpt"]["metrics"].items()}
    return {
        "replay_fraction": round(own["replay_fraction"], 4),
        "exercises": own.get("exercises", 0.0),
        "trained_tokens": own["trained_tokens"],
        "before": worth(finished["evaluation_base"]["metrics"]),
        "after": worth(finished["evaluation_cpt"]["metrics"]),
        "seconds": round(time.perf_counter() - started, 1),
    }


def worth(metrics: dict[str, float]) -> dict[str, float]:
    """The measures of MEASURES, each with its standard error, of what an evaluation told."""
    found = {}
    for name, key in MEASURES.items():
        stderr = f"{key.rpartition('.')[0]}.stderr"
        found |= {
            name: round(metrics[f"evaluation/{key}"], 4),
            f"{name}_stderr": round(metrics[f"evaluation/{stderr}"], 4),
        }
    return found


def main() -> None:
    """Measure the arms that are named, or all; what follows `--set` changes the recipe of each."""
    named, settings = sys.argv[1:], []
    if "--set" in named:
        at = named.index("--set")
        named, settings = named[:at], named[at:]
    file = Path(__file__).with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in named or ARMS:
        found[name] = measured(ARMS[name], settings)
        print(name, json.dumps(found[name]), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
