"""The model card of a registered version: where it comes from, what was measured, what it must not be used for.

Markdown with the metadata block that the Hugging Face hub reads (Mitchell et al., Model Cards for Model Reporting,
arXiv:1810.03993). It lies as README.md beside the weights, and is the description of the version in the registry.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bloomery.components.core.artifact import Manifest
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.promotion.config import ModelCardConfig

NOT_STATED = "Not stated. Set `promotion.model_card.{key}` in the recipe."


@dataclass(frozen=True)
class Facts:
    """What a card is written from."""

    name: str
    lineage: dict[str, str]
    """Tags of the version: digests, base model, commit, run."""
    tasks: Tasks
    results: dict[str, list[dict[str, Any]]]
    """eval_result/2 rows of `candidate`, `base` and `champion`; of the last none for a first version."""
    legs: list[dict[str, Any]]
    curated: Manifest | None
    unique: Manifest | None
    """Of the documents that were curated, and of those that were left of them, where there are any."""
    variant: dict[str, Any]
    """The chosen row of variants.json."""
    num_bytes: int


def write(config: ModelCardConfig, facts: Facts) -> str:
    """The text of the card."""
    sets = _sets(facts)
    front = yaml.safe_dump(_front_matter(config, facts, sets), allow_unicode=True, sort_keys=False)
    licence = f"`{config.license}`" if config.license else NOT_STATED.format(key="license")
    base = facts.lineage.get("base_model", "unknown")
    start = facts.lineage.get("started_from")
    trained = f"trained further from {start} of this model" if start else "trained further"
    parts = [
        f"---\n{front}---\n\n# {facts.name}\n",
        f"`{base}`, {trained}, quantised as `{facts.variant.get('scheme', 'none')}` and promoted by Bloomery "
        f"{facts.lineage['bloomery']}.\n",
        f"## Intended use\n\n{config.intended_use or NOT_STATED.format(key='intended_use')}\n",
        f"## Limits\n\n{config.limits or NOT_STATED.format(key='limits')}\n",
        f"## Licence\n\n{licence}\n",
        _metrics(sets),
        "## The gate\n\n" + "\n".join(f"- {leg['reason']}" for leg in facts.legs) + "\n",
        _data(facts),
        _footprint(facts),
        "## Lineage\n\n" + "\n".join(f"- {key}: `{value}`" for key, value in facts.lineage.items()) + "\n",
    ]
    return "\n".join(parts)


def _front_matter(config: ModelCardConfig, facts: Facts, sets: list[dict[str, Any]]) -> dict[str, Any]:
    """The metadata block, https://huggingface.co/docs/hub/model-cards."""
    base = facts.lineage.get("base_model", "")
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": entry["name"], "type": entry["name"]},
            "metrics": [{"type": entry["metric"], "value": round(entry["candidate"][0], 4)}],
        }
        for entry in sets
        if "candidate" in entry
    ]
    front: dict[str, Any] = {
        "license": config.license.lower(),
        "language": facts.curated.config.get("languages", []) if facts.curated else [],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base if base.count("/") == 1 else "",
        "tags": ["bloomery"],
        "model-index": [{"name": facts.name, "results": results}],
    }
    return {key: value for key, value in front.items() if value}


def _sets(facts: Facts) -> list[dict[str, Any]]:
    """For each evaluation set its name, metric, n, and (value, error) of each model that answered it."""
    found: dict[str, dict[str, Any]] = {}
    for who, rows in facts.results.items():
        by_set: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["repeat"] == 0:
                by_set.setdefault((row["task"], row["split"]), []).append(row)
        for (task, split), members in by_set.items():
            is_text = members[0]["metric"] == "log_likelihood"
            mean, error = mean_stderr([row["score"] for row in members], [row["weight"] for row in members])
            entry = found.setdefault(f"{task}.{split}", {"name": f"{task}.{split}", "n": len(members)})
            entry["metric"] = "perplexity" if is_text else members[0]["metric"]
            # The error of exp(x) is exp(x) times the error of x, to first order.
            entry[who] = (math.exp(-mean), math.exp(-mean) * error) if is_text else (mean, error)
    return [found[name] for name in sorted(found)]


def _metrics(sets: list[dict[str, Any]]) -> str:
    def cell(entry: dict[str, Any], who: str) -> str:
        if who not in entry:
            return "–"
        value, error = entry[who]
        return f"{value:.3f} ± {error:.3f}" if math.isfinite(error) else f"{value:.3f}"

    lines = ["## Evaluation", "", "Mean and standard error; every model answered the same prompts.", ""]
    lines += ["| set | metric | n | this model | base | champion before |", "|---|---|---|---|---|---|"]
    for entry in sets:
        cells = " | ".join(cell(entry, who) for who in ("candidate", "base", "champion"))
        lines.append(f"| {entry['name']} | {entry['metric']} | {entry['n']} | {cells} |")
    return "\n".join(lines) + "\n"


def _data(facts: Facts) -> str:
    if facts.curated is None:
        return "## Data\n\nNo documents; what was learnt are the chats of the recipe.\n"
    manifests = (("curation", facts.curated), ("dedup and decontamination", facts.unique))
    sources = [
        f"`{source['name']}`" + (" (general text)" if source.get("general") else "")
        for source in facts.curated.config.get("sources", [])
    ]
    return (
        "## Data\n\n"
        f"Sources of documents: {', '.join(sources) or 'unknown'}.\n\n"
        "| step | rows in | kept | dropped |\n|---|---|---|---|\n"
        + "".join(
            f"| {step} | {manifest.rows_in:,} | {manifest.rows:,} | {_counts(manifest.dropped)} |\n"
            for step, manifest in manifests
            if manifest is not None
        )
    )


def _counts(dropped: dict[str, int]) -> str:
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"


def _footprint(facts: Facts) -> str:
    def measured(key: str, unit: str, scale: float = 1) -> str:
        value = facts.variant.get(key)
        return "not measured" if value is None else f"{value * scale:,.4g} {unit}"

    rows = {
        "weights on disk": f"{facts.num_bytes:,} bytes",
        "weights in memory": measured("memory_bytes", "bytes"),
        "time to the first token, batch 1": measured("prefill_seconds", "ms", 1000),
        "each further token, batch 1": measured("decode_seconds_per_token", "ms", 1000),
        "training": _training(),
    }
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Footprint\n\n| what | how much |\n|---|---|\n{lines}"


def _training() -> str:
    """Seconds of the training stages, from the journal of the run; a stage that was reused cost nothing here."""
    journal = os.environ.get("BLOOMERY_JOURNAL")
    if not journal or not Path(journal).is_file():
        return "not recorded"
    lines = Path(journal).read_text(encoding="utf-8").splitlines()
    events = [event for line in lines if (event := json.loads(line))["event"] == "finished"]
    stages = [event for event in events if "model" in event["outputs"] and not event["stage"].startswith("ptq")]
    reused = [event["stage"] for event in stages if event["cached"]]
    told = f"{sum(event['seconds'] for event in stages if not event['cached']):,.0f} s in this run"
    return told + (f"; from an earlier run: {', '.join(reused)}" if reused else "")
