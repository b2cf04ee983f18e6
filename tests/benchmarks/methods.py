"""What each method of fine-tuning costs and brings, on a published model: `make bench-methods`.

    python tests/benchmarks/methods.py RUN [METHOD …]

RUN is a run of the recipe `smollm2`, whose checked model, chats and questions are used. Each method trains the model on
the same 512 chats, once, in a process of its own, by the same step as a run; all but the learning rate and what is
trained is alike. Writes methods.json, which two processes with methods of their own may share: numbers that are
trained, peak memory of the process (GiB) and its CPU seconds, which other programs disturb less than they do a clock,
chrF of 100 shell commands, exact repetitions of 100 sentences and ROUGE-L of 100 instructions that are never trained
with, each with its standard error, and the perplexity of 100 PEPs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from surrounding import surrounding

from bloomery.components.core import artifact
from bloomery.components.core.modelling import plan, shapes
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.sft.config import SftConfig

NUM_CHATS = 512
LIMIT = 100
SHARED: dict[str, Any] = {"epochs": 1, "batch_size": 16, "max_length": 128, "num_validations": 0}
FIXED_RATE = 5e-4
"""Of LoRA and its kin; whole matrices take a tenth of it ('LoRA Without Regret', Thinking Machines 2025)."""
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"learning_rate": FIXED_RATE / 10},
    "last 4 layers and head": {"learning_rate": FIXED_RATE / 10, "trained": 4},
    "head": {"learning_rate": FIXED_RATE / 10, "trained": "head"},
    "LoRA r=8 α=16": {"adapter": {"kind": "lora", "rank": 8, "alpha": 16}},
    "LoRA r=16 α=32": {"adapter": {"kind": "lora", "rank": 16, "alpha": 32}},
    "LoRA r=32 α=64": {"adapter": {"kind": "lora", "rank": 32, "alpha": 64}},
    "LoRA r=16 α=32, q and v": {
        "adapter": {"kind": "lora", "rank": 16, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    },
    "rsLoRA r=16 α=8": {"adapter": {"kind": "rslora", "rank": 16, "alpha": 8}},
    "DoRA r=16 α=32": {"adapter": {"kind": "dora", "rank": 16, "alpha": 32}},
    "PiSSA r=16 α=16": {"adapter": {"kind": "pissa", "rank": 16, "alpha": 16}},
    "QLoRA r=16 α=32": {"adapter": {"kind": "qlora", "rank": 16, "alpha": 32}},
    "LoHa r=16 α=32": {"adapter": {"kind": "loha", "rank": 16, "alpha": 32}},
    "OFT, blocks of 32": {"adapter": {"kind": "oft", "rank": 32}},
    "VeRA r=256": {"learning_rate": 10 * FIXED_RATE, "adapter": {"kind": "vera", "rank": 256}},
    "prompt tuning, 20 tokens": {"learning_rate": 0.3, "adapter": {"kind": "prompt"}},
    "p-tuning, 20 tokens": {"learning_rate": 10 * FIXED_RATE, "adapter": {"kind": "p_tuning"}},
    "IA3": {"learning_rate": 10 * FIXED_RATE, "adapter": {"kind": "ia3"}},
}


def step(name: str, settings: dict[str, Any], folder: Path, **artifacts: Path) -> tuple[float, float]:
    """Run a step of the command line in a process of its own: (CPU seconds, GiB at its peak)."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    named = [part for port, path in artifacts.items() for part in (f"--{port.replace('_', '-')}", str(path))]
    command = [str(Path(sys.executable).with_name("bloomery")), "step", name, "--config", str(config), *named]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    told = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(told[-3000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def estimate(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score with its standard error, as percentages."""
    mean, stderr = mean_stderr([row["score"] for row in rows])
    return {"score": round(100 * mean, 1), "stderr": round(100 * stderr, 1), "n": len(rows)}


def num_trained(base: Path, settings: dict[str, Any]) -> int:
    """Numbers that a method trains, as `bloomery plan` counts them."""
    config = SftConfig.model_validate(settings)
    return plan.trained_numbers(shapes.read(base), plan.Training.of(config))


def measured(settings: dict[str, Any], checked: Path, folder: Path) -> dict[str, Any]:
    model, found = checked / "base_model", {}
    if settings:
        whole = {"learning_rate": FIXED_RATE, **SHARED, **settings}
        trained = folder / "model"
        seconds, peak = step("sft", whole, folder, chats=folder / "chats", tasks=checked / "tasks", base_model=model,
                             model=trained)  # fmt: skip
        found = {"trained": num_trained(model, whole), "cpu_seconds": round(seconds, 1), "gib": round(peak, 2)}
        model = trained
    results = folder / "results"
    asked = {"limit": LIMIT, "max_length": 128}
    step("evaluation", asked, folder, model=model, tasks=checked / "tasks", results=results)
    rows = artifact.read_table(results, "eval_result/2").to_pylist()
    tasks = ("command", "repeating", "instructions", "prose")
    by_task = {name: [row for row in rows if row["task"] == name] for name in tasks}
    prose = by_task.pop("prose")
    nats, _ = mean_stderr([row["score"] for row in prose], [row["weight"] for row in prose])
    return {**found, **{name: estimate(own) for name, own in by_task.items()}, "perplexity": round(math.exp(-nats), 2)}


def main() -> None:
    (checked,) = Path(sys.argv[1]).glob("pipeline/*/preflight")
    file = Path(__file__).with_suffix(".json")
    chats = artifact.read_table(checked / "seeds", "chat/2").sort_by("id").slice(0, NUM_CHATS)
    for name in sys.argv[2:] or METHODS:
        with tempfile.TemporaryDirectory() as folder:
            artifact.write_rows(Path(folder) / "chats", "chat/2", chats)
            told = measured(METHODS[name], checked, Path(folder))
        print(name, json.dumps(told, ensure_ascii=False), flush=True)
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}  # of another process by now
        found[name] = {**told, **surrounding()}
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
