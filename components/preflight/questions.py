"""The questions of a recipe's tasks: every row in every phrasing, checked by its own verifier, and the training ones as
chats."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, uploads
from bloomery.components.core.config import parameters
from bloomery.components.core.data import render
from bloomery.components.core.data.chats import EXERCISE, Turn, as_text, identity, without_system
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.tables import read_source
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Chat, Prompt, content_id
from bloomery.components.core.scoring import lm_eval_tasks
from bloomery.components.core.scoring.statistics import too_few
from bloomery.components.core.scoring.tasks import (
    TRAINING_SPLITS,
    Perturbation,
    SplitConfig,
    TaskConfig,
    answered,
    ask,
    is_evaluation,
)
from bloomery.components.core.scoring.verify import (
    REFUSAL_REFERENCES,
    extract,
    extract_reference,
    normalise,
    pattern_problem,
    verify,
)
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.preflight.perturb import perturb

logger = logging.getLogger(__name__)


def render_tasks(config: PreflightConfig, target: Path, seeds: Path) -> dict[str, float]:
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    lost: dict[str, float] = {}
    seen: set[tuple[str, str, str]] = set()
    stored: dict[str, Any] = {}
    target.mkdir(parents=True, exist_ok=True)
    for name, task in config.tasks.items():
        attached = _attach(name, task, target / "files")
        stored[name] = parameters(attached)
        problems: dict[tuple[str, int], str] = {}  # of a row that several splits read, once
        for split in task.splits:
            for row in _ask(name, task, split, problems):
                key = (name, task.counted_to(split), row["id"])
                if key in seen:
                    dropped["repeated"] += 1
                    continue
                seen.add(key)
                rows.append(row)
        dropped += _tell_lost(name, problems)
        lost[f"preflight/lost_{name}"] = float(len(problems))
        _self_check(name, attached, [row for row in rows if row["task"] == name], target / "files")
    # A training row that asks what an evaluation set asks would make that set measure memory.
    asked = {_asked(row) for row in rows if is_evaluation(row["split"])} - {""}
    kept = []
    for row in rows:
        if not is_evaluation(row["split"]) and _asked(row) in asked:
            dropped["in_evaluation_set"] += 1
        else:
            kept.append(row)
    derived = [
        {**row, "split": f"{row['split']}+{kind}", "messages": messages}
        for row in kept
        if is_evaluation(row["split"])
        for kind in config.tasks[row["task"]].perturbations
        if (messages := _perturbed(row, kind)) != row["messages"]
    ]
    _tell_few(config, kept)
    num_seeds = _write_seeds(config, kept, seeds)
    artifact.write_atomically(target / "tasks.json", json.dumps(stored, ensure_ascii=False, indent=1, sort_keys=True))
    if config.lm_eval_tasks:
        lm_eval_tasks.take(config.lm_eval_tasks, target)
    # tasks/1 holds prompt/2 rows beside its other files, so it is sealed over the prompts' manifest.
    prompts = artifact.write_rows(
        target,
        "prompt/2",
        Prompt.table(kept + derived),
        rows_in=len(rows) + dropped.total() - dropped["in_evaluation_set"],
        rows_made=len(derived),
        dropped=dropped,
    )
    artifact.seal(
        target,
        "tasks/1",
        rows=prompts.rows,
        rows_in=prompts.rows_in,
        rows_made=len(derived),
        dropped=prompts.dropped,
    )
    if dropped:
        logger.info("rows of tasks left out: %s", dict(dropped))
    return {"preflight/prompts": float(prompts.rows), "preflight/seeds": float(num_seeds), **lost}


def _write_seeds(config: PreflightConfig, rows: list[dict[str, Any]], target: Path) -> int:
    """The training questions that have an answer as chats; returns their number."""
    chats = [
        {
            "id": row["id"],
            "messages": answered(row),
            "tools": row["tools"],
            "task": row["task"],
            "origin": EXERCISE if role == "general" else "seed",
            "parent": row["id"],
        }
        for role in ("domain", "safety", "general")
        for row in rows
        if row["split"] == "train" and row["messages"] and config.tasks[row["task"]].role == role
    ]
    artifact.write_rows(target, "chat/2", Chat.table(chats), rows_in=0, rows_made=len(chats))
    return len(chats)


def _tell_lost(name: str, problems: dict[tuple[str, int], str]) -> Counter[str]:
    """How many rows of a task ask nothing, by reason; with a warning that names the first."""
    if problems:
        logger.warning("tasks.%s: %d rows are lost: %s", name, len(problems), _told(problems))
    return Counter(problems.values())


def _tell_few(config: PreflightConfig, rows: list[dict[str, Any]]) -> None:
    """Warn of an evaluation set by which the gate is to see what a candidate is better at, and which is too small."""
    sets = Counter((row["task"], row["split"]) for row in rows if is_evaluation(row["split"]))
    for (name, split), count in sets.items():
        task, asked = config.tasks[name], min(count, config.limit or count)
        if task.role == "domain" and task.verifier.kind != "perplexity" and (told := too_few(asked)):
            logger.warning("tasks.%s.splits.%s: the gate will judge by %s", name, split, told)


def _told(problems: dict[tuple[str, int], str]) -> str:
    """How many rows ask nothing, by reason, and the first of them."""
    (uri, line), reason = next(iter(problems.items()))
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(problems.values()).most_common())
    return f"{counts}; the first is {uri}{f' row {line}' if line else ''}, {reason}"


def _ask(name: str, task: TaskConfig, split: str, problems: dict[tuple[str, int], str]) -> list[dict[str, Any]]:
    """The prompt/2 rows of a split, every row in every phrasing; adds to `problems` why a (file, line) asks nothing.

    Raises: DataError if the split is empty, or a template names a field that the rows lack.
    """
    source = task.splits[split]
    whole = task.counted_to(split)
    group = task.group if source.group is None else source.group
    where = f"tasks.{name}.splits.{split}"
    found: list[dict[str, Any]] = []
    here: dict[tuple[str, int], str] = {}
    phrasings = source.templates or task.templates
    texts = [text for phrasing in phrasings for text in (phrasing.system, phrasing.prompt, phrasing.answer)]
    # Results are told by group; rows to learn from, such as served questions, need none.
    group = group if is_evaluation(whole) else ""
    for raw in read_source(source, list_files(source.path), where, [*texts, group]):
        if raw.value is None:
            here[raw.uri, raw.line] = raw.problem
            continue
        for template in phrasings:
            question, told = ask(template, raw.value), render.template(group).fill(raw.value)
            if problem := question.problem or told.problem:
                here[raw.uri, raw.line] = problem
                continue
            found.append(
                {
                    "id": content_id(name, identity(question.messages, question.tools), question.reference),
                    "task": name,
                    "split": whole,
                    "messages": question.messages,
                    "tools": question.tools,
                    "reference": question.reference,
                    "group": told.text,
                }
            )
    if not found:
        told = _told(here) if here else "no row is meant"
        raise DataError(f"{where}: no usable row in {source.path}: {told}; check `where`, `share` and the file")
    problems |= here
    return found


def _asked(row: dict[str, Any]) -> str:
    """What a row asks, for comparison: its turns but the system's."""
    return normalise(as_text(without_system(row["messages"])), ignore_case=True)


def _perturbed(row: dict[str, Any], kind: Perturbation) -> list[Turn]:
    """The messages of a row, the last user turn harder to read."""
    at = max(index for index, turn in enumerate(row["messages"]) if turn["role"] == "user")
    turn = row["messages"][at]
    harder = {**turn, "content": perturb(turn["content"], kind, row["id"])}
    return [*row["messages"][:at], harder, *row["messages"][at + 1 :]]


def _attach(name: str, task: TaskConfig, folder: Path) -> TaskConfig:
    """`task` as later steps read it: its verifier's databases copied into `folder` and named by their file there, its
    splits without the place of their rows, so that the same rows elsewhere are the same task."""
    names = []
    for path in task.verifier.databases:
        for uri in list_files(path) if "*" in path else list_files(str(uploads.fetched(path))):
            folder.mkdir(parents=True, exist_ok=True)
            names.append(f"{name}-{len(names)}{Path(uri).suffix}")
            shutil.copyfile(uploads.fetched(uri), folder / names[-1])
    verifier = task.verifier.model_copy(update={"databases": names})
    splits = {
        split: SplitConfig(path="", templates=source.templates, joins=source.joins)
        for split, source in task.splits.items()
    }
    return task.model_copy(update={"verifier": verifier, "splits": splits})


def _self_check(name: str, task: TaskConfig, rows: list[dict[str, Any]], folder: Path) -> None:
    """A reference that its own verifier refuses would be counted as a wrong answer of every model."""
    if task.verifier.kind == "perplexity":
        return
    if task.verifier.kind == "regex":
        for row in rows:
            if problem := pattern_problem(row["reference"]):
                raise DataError(
                    f"tasks.{name}.splits.{row['split']}: the reference {row['reference'][:120]!r} is no regular "
                    f"expression ({problem}); the verifier `regex` takes references as patterns"
                )
        return
    if task.verifier.kind == "refusal":
        for row in rows:
            found, is_asked = row["reference"].strip(), is_evaluation(row["split"])
            if is_asked != (found in REFUSAL_REFERENCES):
                expected = "`refuse` or `answer`" if is_asked else "what the model is to say"
                raise DataError(
                    f"tasks.{name}.splits.{row['split']}: found the reference {found[:120]!r}, expected {expected}; "
                    "check its templates"
                )
        return
    for row in [row for row in rows if row["split"] == "train"][:50]:
        if extract(task.verifier, row["reference"]) is None:
            raise DataError(
                f"tasks.{name}.splits.train: verifier.extract finds no answer in what the model is to learn to say, so "
                f"it would be scored wrong: {row['reference'][-120:]!r}; check templates and {task.verifier.extract!r}"
            )
    databases = [folder / database for database in task.verifier.databases]
    plain = task.verifier.model_copy(update={"extract": ""})
    sample = [row for row in rows if row["split"] not in TRAINING_SPLITS][:50] or rows[:50]
    for row in sample:
        wanted = extract_reference(task.verifier, row["reference"])
        score, reason = verify(plain, wanted, wanted, databases)
        if score < 1.0:
            raise DataError(
                f"tasks.{name}: the verifier refuses a reference answer ({reason}): {row['reference'][:120]!r}; "
                f"check tasks.{name}.verifier against tasks.{name}.templates"
            )
