"""Chats to imitate and prompts to sample from: seeds, questions found in documents, the same asked about other
things and in other words."""

from __future__ import annotations

import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core.artifact import Reads, Writes, read_table, write_rows
from bloomery.components.core.data.chats import as_text, chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.records import Chat, Prompt, Reject, content_id
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.synthetic_data.augment import augment, rules
from bloomery.components.synthetic_data.config import ExtractConfig, SyntheticDataConfig
from bloomery.components.synthetic_data.recombine import numbers_in, recombine

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def run(
    config: SyntheticDataConfig,
    *,
    documents: Annotated[Path, Reads("document/2")],
    tasks: Annotated[Path, Reads("tasks/1")],
    chats: Annotated[Path, Writes("chat/2")],
    prompts: Annotated[Path, Writes("prompt/2")],
    rejects: Annotated[Path, Writes("reject/1")],
) -> dict[str, float]:
    """Make chats of the domain tasks from training questions and from documents, and vary what and how they ask.

    Training questions of safety tasks join as they are, so that their share is that of the recipe; those of general
    tasks too (origin `replay`), so that fine-tuning forgets less.

    Reads:   documents (document/2), tasks (tasks/1)
    Writes:  chats (chat/2, origin `seed`, `replay`, `document`, `recombined` or `augmented`), prompts
             (prompt/2: unlabelled questions of the domain tasks, or the training ones where there are
             none), rejects (reject/1)
    Returns: synthetic_data/chats and chats_<origin>, prompts, rejects and rejects_<reason>,
             augmented_fraction
    Raises:  ConfigError if a pattern names no task, DataError if no chat is left.
    """
    task_set = Tasks(tasks)
    for index, pattern in enumerate(config.extract):
        if pattern.task not in task_set.configs:
            known = ", ".join(task_set.configs)
            where = f"synthetic_data.extract.{index}.task"
            raise ConfigError(f"{where}: found '{pattern.task}'; the recipe's tasks are: {known}")
    sorter = _Sorter(task_set)
    seeds, safe, replayed = (_answered(task_set, role, "train") for role in ("domain", "safety", "general"))
    for prompt in seeds:
        sorter.add(prompt.task, as_text(prompt.messages), prompt.reference, origin="seed", parent=prompt.id)
    for document in read_table(documents, "document/2").to_pylist() if config.extract else ():
        for pattern, prompt, answer in _found_in(document["text"], config.extract):
            sorter.add(pattern.task, prompt, answer, origin="document", parent=document["id"])
    _recombine(sorter, config)
    _augment(sorter, config)
    if not sorter.chats:
        raise DataError(_nothing_left(task_set, sorter))
    for prompt in safe:
        sorter.add(prompt.task, as_text(prompt.messages), prompt.reference, origin="seed", parent=prompt.id)
    for prompt in replayed:
        sorter.add(prompt.task, as_text(prompt.messages), prompt.reference, origin="replay", parent=prompt.id)
    reasons = Counter(row["reason"] for row in sorter.rejects)
    entered = len(seeds) + len(safe) + len(replayed)
    made = len(sorter.chats) + len(sorter.rejects) - entered
    write_rows(chats, "chat/2", Chat.table(sorter.chats), rows_in=entered, rows_made=made, dropped=reasons)
    write_rows(rejects, "reject/1", Reject.table(sorter.rejects))
    asked = _answered(task_set, "domain", "unlabelled") or seeds
    write_rows(prompts, "prompt/2", Prompt.table([dict(prompt) for prompt in asked]))
    origins = Counter(row["origin"] for row in sorter.chats)
    kept = dict(origins)
    logger.info("%d chats %s, %d prompts; dropped: %s", len(sorter.chats), kept, len(asked), dict(reasons))
    metrics = {
        "chats": len(sorter.chats),
        **{f"chats_{origin}": origins[origin] for origin in ("seed", "replay", "document", "recombined", "augmented")},
        "augmented_fraction": origins["augmented"] / len(sorter.chats),
        "prompts": len(asked),
        "rejects": len(sorter.rejects),
        **{f"rejects_{reason}": count for reason, count in sorted(reasons.items())},
    }
    return {f"synthetic_data/{name}": float(value) for name, value in metrics.items()}


class _Sorter:
    """Takes every sample made, and puts it with the chats or with the rejects."""

    def __init__(self, tasks: Tasks) -> None:
        self.chats: list[Row] = []
        self.rejects: list[Row] = []
        self._tasks = tasks
        held_out = [*tasks.prompts(), *tasks.prompts("validation")]
        self._held_out = {_loose(as_text(row.messages)): row for row in held_out if row.messages}
        self._seen: dict[str, str] = {}
        self._wordings: set[str] = set()

    def add(self, task: str, prompt: str, answer: str, *, origin: str, parent: str) -> None:
        """Keep a sample that is new, verified, and asked by no evaluation set."""
        sample = content_id(task, prompt, answer)
        reason, detail = self._verdict(task, prompt, answer, origin)
        if reason:
            facts = {"source": f"{origin}:{parent}", "reason": reason, "detail": detail}
            self.rejects.append({"id": sample, **facts, "text": f"{prompt}\n\n{answer}"[:500]})
            return
        self._seen.setdefault(_loose(prompt), sample)
        self._wordings.add(_exact(prompt))
        facts = {"task": task, "origin": origin, "parent": parent}
        self.chats.append({"id": sample, "messages": chat(prompt, answer), "tools": "", **facts})

    def _verdict(self, task: str, prompt: str, answer: str, origin: str) -> tuple[str, str]:
        """(reason, detail), or two empty strings where the sample is good."""
        if not prompt.strip() or not answer.strip():
            return "empty", ""
        held_out = self._held_out.get(_loose(prompt))
        if held_out is not None:
            return "in_evaluation_set", f"asks what {held_out.id} of {held_out.task}/{held_out.split} asks"
        # Another wording differs from its seed in case, marks or spaces alone: it is compared letter by
        # letter.
        if origin == "augmented":
            is_known = _exact(prompt) in self._wordings
            return ("duplicate", "the same wording stands there already") if is_known else ("", "")
        if _loose(prompt) in self._seen:
            return "duplicate", f"of {self._seen[_loose(prompt)]}"
        if origin in ("document", "recombined"):
            # An answer that its own verifier refuses when compared with itself cannot be right: SQL that does
            # not run.
            score, problem = self._tasks.verify(task, answer, answer)
            if score < 1:
                return "unverified", problem
        return "", ""


def _answered(tasks: Tasks, role: str, split: str) -> list[Any]:
    """The questions of a split of the tasks of `role` that have answers to verify."""
    return [
        prompt
        for prompt in tasks.prompts(split)
        if tasks.configs[prompt.task].role == role and not tasks.is_scored_by_likelihood(prompt.task)
    ]


def _found_in(text: str, patterns: list[ExtractConfig]) -> Iterator[tuple[ExtractConfig, str, str]]:
    """(pattern, prompt, answer) of every match in a document."""
    for pattern in patterns:
        for match in re.finditer(pattern.pattern, text, re.MULTILINE):
            fields = {name: (value or "").strip() for name, value in match.groupdict().items()}
            yield pattern, pattern.prompt.format_map(fields), pattern.answer.format_map(fields)


def _recombine(sorter: _Sorter, config: SyntheticDataConfig) -> None:
    """Ask every chat so far about other things, `recombined_per_chat` times."""
    parents = list(sorter.chats)
    numbers = numbers_in([parent["messages"][1]["content"] for parent in parents])
    rng = random.Random(config.seed)
    for parent in parents:
        question, answer = (message["content"] for message in parent["messages"])
        for _ in range(config.recombined_per_chat):
            asked, answered = recombine(question, answer, config.entities, numbers, rng)
            if asked != question:
                sorter.add(parent["task"], asked, answered, origin="recombined", parent=parent["id"])


def _augment(sorter: _Sorter, config: SyntheticDataConfig) -> None:
    """Vary chats in random order, each once, until their share is reached."""
    parents = list(sorter.chats)
    wanted = int(config.augmented_share / (1 - config.augmented_share) * len(parents))
    rng = random.Random(config.seed)
    available = rules(config.synonyms)
    for parent in rng.sample(parents, len(parents)):
        if len(sorter.chats) - len(parents) >= wanted:
            return
        question, answer = (message["content"] for message in parent["messages"])
        varied = augment(question, available, rng)
        if varied != question:
            sorter.add(parent["task"], varied, answer, origin="augmented", parent=parent["id"])


def _exact(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _loose(text: str) -> str:
    """Letters and digits alone, in NFKC and without case: equal for questions that a reader would call the
    same."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _nothing_left(tasks: Tasks, sorter: _Sorter) -> str:
    domain = [name for name, config in tasks.configs.items() if config.role == "domain"]
    counts = Counter(row["reason"] for row in sorter.rejects)
    return (
        f"no chat to learn from: the domain tasks ({', '.join(domain) or 'none'}) have no "
        f"usable question in a `train` split and `extract` found none (dropped: {dict(counts)}); give a task a "
        "`train` split or add a pattern to `extract`"
    )
