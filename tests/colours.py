"""A recipe that goes through the whole chain in a minute, and the command that runs it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import yaml
from canaries import CANARY, ENVIRONMENT
from service import BLOOMERY

from bloomery.components.core import interpreter
from bloomery.pipelines import run_outputs


def write_recipe(folder: Path, base: Path) -> Path:
    """Write to `folder` a recipe whose task is learnt in seconds: whatever the question, the colour is red."""
    shutil.copytree(base, folder / "base")
    things = [
        f"{a} {b}" for a in ("cup", "hat", "sock", "door", "lamp", "chair") for b in ("one", "two", "three", "four")
    ]
    rows = []
    for index, thing in enumerate(things):
        split = ("train", "train", "unlabelled", "validation", "test")[index % 5]
        rows.append({"q": f"colour of {thing}?", "a": "red", "split": split})
    (folder / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "docs").mkdir()
    for index, thing in enumerate(things):
        text = f"The {thing} in the shop is painted red every May; number {index * 7} is sold to people of the town."
        (folder / "docs" / f"{index}.txt").write_text(text)
    (folder / "docs" / "copy.txt").write_text((folder / "docs" / "0.txt").read_text())
    (folder / "docs" / "broken.jsonl").write_text('{"text": ')
    people, acts, places = (
        ("A baker", "The nurse", "Her uncle", "One farmer", "Our teacher"),
        ("walks slowly", "reads old letters", "counts every coin", "sings out loud"),
        ("beside the river", "under tall trees", "in a quiet kitchen", "on the night train", "near the harbour wall"),
    )
    # No two share more than a third of their words: copies would be dropped, and the gate minds.
    sentences = [f"{people[n % 5]} {acts[n % 4]} {places[(n + n // 5) % 5]}." for n in range(20)]
    (folder / "general.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in sentences))

    def split(name):
        return {"path": "q.jsonl", "where": {"split": name}}

    training = {"batch_size": 8, "max_length": 64}
    docs = {"name": "docs", "path": "docs"}
    general = {"name": "general", "path": "general.jsonl", "general": True}
    recipe = {
        "name": "colours",
        "registered_model": "colours",
        "base_model": "base",
        "tasks": {
            "colour": {
                "role": "domain",
                "templates": [{"prompt": "{q}", "answer": "{a}"}],
                "verifier": {"kind": "exact"},
                "max_new_tokens": 6,
                "splits": {name: split(name) for name in ("train", "unlabelled", "validation", "test")},
            },
            "plain": {
                "role": "general",
                "templates": [{"answer": "{text}"}],
                "verifier": {"kind": "perplexity"},
                "splits": {"test": {"path": "general.jsonl", "limit": 10}},
            },
        },
        "stages": [
            {"data_curation": {"sources": [docs, general]}},
            "dedup",
            "synthetic_data",
            {"cpt": {"learning_rate": 1e-3, "epochs": 1, **training}},
            {"sft": {"learning_rate": 1e-2, "epochs": 30, "num_validations": 2, **training}},
            {"rejection_sampling": {"num_samples": 4, "temperature": 1.2}},
            {"sft": {"as": "sft_2", "learning_rate": 1e-3, "epochs": 5, "num_validations": 2, **training}},
            {"dpo": {"learning_rate": 1e-4, "epochs": 3, "batch_size": 2, "max_length": 64}},
        ],
        "quantisation": [{"scheme": "int8_weight_only"}],
        "ptq": {"min_agreement": 0.8},  # nobody shows 0.9 with 19 questions
        "promotion": {"gate": {"max_perplexity_ratio": 1000}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def bloomery(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command, among secrets that it must not tell."""
    kept = (interpreter.PYTHON,)  # the fixture `forks`
    env = {key: value for key, value in os.environ.items() if key in kept or not key.startswith(("MLFLOW", "BLOOMERY"))}
    env |= {**ENVIRONMENT, **environment}
    result = subprocess.run([BLOOMERY, *arguments], cwd=project, capture_output=True, text=True, env=env)
    assert CANARY not in result.stdout + result.stderr
    return result


def run(project: Path, workdir: str, *settings: str, recipe: str = "recipe.yaml", **environment: str) -> dict:
    result = bloomery(project, "run", recipe, "--workdir", workdir, "--json", *settings, **environment)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stdout, result.stderr
    return json.loads(result.stdout.rstrip("\n").split("\n")[-1])


def outputs(summary: dict) -> run_outputs.Outputs:
    """What a run's stages have written."""
    return run_outputs.read(Path(summary["run"]))[2]
