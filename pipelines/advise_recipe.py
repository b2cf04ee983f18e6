"""The recipe that an advice means: its values, and as YAML with a comment for each stage."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from bloomery.pipelines.advise_decisions import (
    FEW,
    MOST_TESTED,
    OVERHEAD,
    TEST_ROWS,
    Answers,
    Decided,
    Measured,
    memory_to_serve,
)

SCHEMA = Path(__file__).parent / "recipes" / "recipe.schema.json"
SHOTS = 4
"""Examples in the prompt that training has to beat. A reading aid."""
MAX_NEW_TOKENS = 256
"""Tokens of the longest answer, where a quarter of the model's context is not less. A reading aid."""
DOMAIN_TEXT = {"train": [0.0, 0.97], "test": [0.97, 1.0]}
"""Shares of the documents. The last part is for perplexity alone."""

Values = dict[str, Any]


def of(answers: Answers, measured: Measured, decided: Decided) -> Values:
    """The recipe as `recipe.parse_recipe` takes it; paths are those of the answers."""
    shares = _shares(answers, decided)
    values: Values = {
        "name": answers.name,
        "registered_model": answers.name,
        "base_model": answers.model,
        **({"chat_template": "chatml"} if measured.lacks_template else {}),
    }
    if decided.sft and not decided.prompting:
        values["chats"] = [{"name": "examples", "path": answers.chats, "share": shares["train"]}]
    if decided.dpo:
        share = {} if answers.examples else {"share": [0.0, 0.9]}
        values["preferences"] = [{"name": "pairs", "path": answers.preferences, **share}]
    values["tasks"] = _tasks(answers, measured, decided, shares)
    values["stages"] = _stages(answers, measured, decided)
    values["quantisation"] = [{"scheme": scheme} for scheme in decided.schemes]
    gate: Values = {}
    if (memory := memory_to_serve(answers, measured)) != float("inf"):
        gate["max_bytes"] = int(memory / OVERHEAD)
    if answers.latency:
        gate["max_decode_seconds_per_token"] = answers.latency / 1e3
    if gate:
        values["promotion"] = {"gate": gate}
    return values


def _shares(answers: Answers, decided: Decided) -> dict[str, list[float]]:
    """Disjoint parts of the file of examples, by what they are for."""
    if decided.prompting:
        return {"train": [0.0, 0.5], "test": [0.5, 1.0]}
    test = round(1 - min(MOST_TESTED, max(0.1, TEST_ROWS / answers.examples)), 2)
    watched = round(test - 0.05, 2)
    sampled = round(watched * 0.75, 2) if decided.sampling else watched
    parts = {"train": [0.0, sampled], "unlabelled": [sampled, watched]}
    return {**parts, "validation": [watched, test], "test": [test, 1.0]}


def _tasks(answers: Answers, measured: Measured, decided: Decided, shares: dict[str, list[float]]) -> Values:
    verifier: Values = {"kind": "chrf" if answers.verifier == "none" else answers.verifier}
    if answers.verifier == "sql_execution":
        verifier["databases"] = ["first.sqlite", "second.sqlite"]
    context = measured.shape.context if measured.shape else 0
    most = min(MAX_NEW_TOKENS, context // 4) if context else MAX_NEW_TOKENS
    of_domain = {"role": "domain", "max_new_tokens": most, "verifier": verifier}
    found: Values = {}
    if answers.examples or decided.sft:
        used = ["test"]
        used += ["train"] if decided.prompting else ["validation"] if decided.sft else []
        used += ["unlabelled"] if decided.sampling else []
        splits = {name: {"path": answers.chats, "share": share} for name, share in shares.items() if name in used}
        found["examples"] = {**of_domain, "templates": [measured.chat], "splits": splits}
        if decided.prompting and (shots := _shots(measured, most)):
            found["examples"]["shots"] = shots
    elif decided.dpo:
        splits = {"test": {"path": answers.preferences, "share": [0.9, 1.0]}}
        found["examples"] = {**of_domain, "templates": [measured.pair], "splits": splits}
    read = {"verifier": {"kind": "perplexity"}}
    if decided.cpt:
        splits = {"test": {"path": answers.documents, "share": DOMAIN_TEXT["test"], "limit": 500}}
        template = [{"answer": measured.document}]
        found["documents"] = {"role": "domain", "templates": template, **read, "splits": splits}
    if answers.general:
        splits = {"test": {"path": answers.general, "share": [0.9, 1.0], "limit": 500}}
        if decided.sft:
            splits["train"] = {"path": answers.general, "share": [0.0, 0.1], "limit": 200}
        template = [{"answer": measured.general}]
        found["general"] = {"role": "general", "templates": template, **read, "splits": splits}
    return found


def _shots(measured: Measured, most: int) -> int:
    """SHOTS, or as many as the context has room for beside a question and an answer of `most` tokens."""
    if not measured.shape or not measured.longest:
        return SHOTS
    return max(0, min(SHOTS, (measured.shape.context - most) // measured.longest - 1))


def _stages(answers: Answers, measured: Measured, decided: Decided) -> list[Any]:
    def settings(step: str) -> Values:
        return dict(decided.trained[step].settings)

    found: list[Any] = []
    if decided.cpt:
        sources: list[Values] = [{"name": "documents", "path": answers.documents, "share": DOMAIN_TEXT["train"]}]
        sources[0]["text"] = measured.document
        if answers.general:
            general = {"name": "general", "path": answers.general, "share": [0.1, 0.9], "text": measured.general}
            sources.append({**general, "general": True})
        found.append({"data_curation": {"languages": answers.languages.split(","), "sources": sources}})
        found += ["dedup", {"cpt": settings("cpt")}]
    if decided.sft:
        found.append({"sft": settings("sft")})
    if decided.sampling == "rejection_sampling":
        again = settings("sft")
        again["learning_rate"] = again["learning_rate"] / 2
        again["epochs"] = 1
        found += ["rejection_sampling", {"sft": {"as": "sft_2", **again}}]
    if decided.sampling == "grpo":
        found.append({"grpo": settings("grpo")})
    if decided.dpo:
        found.append({"dpo": settings("dpo")})
    return found


REASONS = {
    "data_curation": "Keeps the documents that are fit to be read and masks personal data in them.",
    "dedup": "Takes out copies, which would be learnt by heart, and every question of an evaluation set.",
    "cpt": "Reads the documents: knowledge of a domain comes from reading it.",
    "sft": "Imitates the examples, which say what an answer should be.",
    "rejection_sampling": "Answers questions that it was not trained on; a program keeps the right answers.",
    "sft_2": "Learns from its own right answers too, at half the learning rate.",
    "grpo": "Answers questions that it was not trained on, and learns by which of its answers a program finds right.",
    "dpo": "Learns which of two answers is the better one: pairs say what to leave, which examples cannot.",
}
"""Why a stage is there, by its name."""


def written(answers: Answers, decided: Decided, values: Values) -> str:
    """The recipe as YAML, which editors complete by the schema of this installation."""
    lines = [f"# yaml-language-server: $schema={SCHEMA}"]
    lines += _comment(
        f"Written by `bloomery advise`. What is lacking: {answers.goal}; what there is to know "
        f"{_CHANGES[answers.fresh]}; there are {answers.examples:,} examples, {answers.document_tokens:,} tokens of "
        f"documents and {answers.pairs:,} preference pairs. Numbers are where to begin from: `bloomery plan` tells "
        "what they take, `bloomery tune` searches for better ones.",
        "",
    )
    shots = values["tasks"].get("examples", {}).get("shots") if decided.sft else None
    if shots:
        lines += _comment(
            f"With fewer than {FEW} examples a prompt comes first: every model of the run is asked with {shots} of "
            "them before the question, the base model too, so that training is promoted only where it beats that.",
            "",
        )
    for key, value in values.items():
        if key in ("chats", "tasks", "stages", "quantisation", "promotion"):
            lines.append("")
        lines += _comment(_about(key, answers, decided), "")
        lines += _staged(value) if key == "stages" else _dumped({key: value})
    return "\n".join(lines) + "\n"


_CHANGES = {"weekly": "changes every week", "yearly": "changes every year", "stable": "does not change"}


def _about(key: str, answers: Answers, decided: Decided) -> str:
    """What stands above a key."""
    if key == "chat_template":
        return "The model has no chat template of its own."
    if key == "chats":
        return "Masked, deduplicated, and held against the evaluation sets before anything is trained on them."
    if key == "tasks" and decided.prompting and decided.sft:
        return "Rows of `train` are learnt from as they are: personal data in them are not masked."
    if key == "tasks" and answers.verifier == "none":
        return "No program knows a right answer, so nearness to the reference (chrF) is measured."
    if key == "tasks" and answers.verifier == "sql_execution":
        return "A query is right if it gives the same rows on every database: put yours in the place of these."
    if key == "quantisation":
        return "Measured beside the model in 16 bits; the smallest that is shown to be as good is served."
    if key == "promotion":
        return "What the place where it answers allows."
    return ""


def _staged(stages: list[Any]) -> list[str]:
    lines = ["stages:"]
    for stage in stages:
        step, settings = (stage, {}) if isinstance(stage, str) else next(iter(stage.items()))
        lines += _comment(REASONS[settings.get("as", step)], "  ")
        lines += [f"  {line}" for line in _dumped([stage])]
    return lines


def _dumped(value: Any) -> list[str]:
    """YAML whose innermost mappings and lists stand on a line."""
    (first,) = value.values() if isinstance(value, dict) else value
    style = None if isinstance(first, dict | list) else False
    told = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=118, default_flow_style=style)
    return told.rstrip("\n").split("\n")


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, 116, break_on_hyphens=False)]
