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

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.components.core.artifact import Reads, Shards, Writer, Writes, read_table, write_rows
from bloomery.components.core.data.chats import Turn, as_text, chat, identity
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.records import Chat, Prompt, Reject, content_id
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.synthetic_data import raft
from bloomery.components.synthetic_data.augment import augment, rules
from bloomery.components.synthetic_data.config import ExtractConfig, SyntheticDataConfig
from bloomery.components.synthetic_data.raft import Source
from bloomery.components.synthetic_data.recombine import numbers_in, recombine

logger = logging.getLogger(__name__)

Row = dict[str, Any]
ORIGINS = ("seed", "replay", "document", "recombined", "augmented", "raft")


def run(
    config: SyntheticDataConfig,
    *,
    tasks: Annotated[Path, Reads("tasks/1")],
    chats: Annotated[Path, Writes("chat/2")],
    prompts: Annotated[Path, Writes("prompt/2")],
    rejects: Annotated[Path, Writes("reject/1")],
    seeds: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
    documents: Annotated[Path | None, Reads("document/2", optional=True)] = None,
) -> dict[str, float]:
    """Make chats of the domain tasks from training questions and from documents, and vary what and how they ask.

    Seeds of safety tasks join as they are, so that their share is that of the recipe; those of general tasks too
    (origin `replay`), so that fine-tuning forgets less. Chats that are no task's seeds are passed on last, as they are.

    Reads:   documents (document/2), tasks (tasks/1), seeds (chat/2: the tasks' training questions with their answers,
             and given chats)
    Writes:  chats (chat/2, origin `seed`, `replay`, `document`, `recombined`, `augmented`, `raft`, those passed on),
             prompts (prompt/2: unlabelled questions of the domain tasks, or the training ones where there are none),
             rejects (reject/1)
    Returns: synthetic_data/chats and chats_<origin>, prompts, rejects and rejects_<reason>, augmented_fraction (of
             those not passed on)
    Raises:  ConfigError if a pattern names no task, DataError if no chat is left.
    """
    task_set = Tasks(tasks)
    for index, pattern in enumerate(config.extract):
        if pattern.task not in task_set.configs:
            known = ", ".join(task_set.configs)
            where = f"synthetic_data.extract.{index}.task"
            raise ConfigError(f"{where}: found '{pattern.task}'; the recipe's tasks are: {known}")
    sorter = _Sorter(task_set)
    given = Shards(seeds, "chat/2") if seeds else None
    by_role = _seeds(given, task_set)
    for seed in by_role["domain"]:
        sorter.take(seed)
    read = read_table(documents, "document/2").to_pylist() if config.extract and documents else []
    sources = _extract(sorter, config, read)
    _recombine(sorter, config)
    _augment(sorter, config)
    _beside_documents(sorter, config, sources, [document["text"] for document in read])
    num_read = given.num_rows if given else 0
    num_given = num_read - sum(map(len, by_role.values()))
    if not sorter.chats and not num_given:
        raise DataError(_nothing_left(task_set, sorter))
    for seed in by_role["safety"] + by_role["general"]:
        sorter.take(seed)
    reasons = Counter(row["reason"] for row in sorter.rejects)
    made = len(sorter.chats) + num_given + len(sorter.rejects) - num_read
    writer = Writer(chats, "chat/2")
    writer.add(Chat.table(sorter.chats))
    for table, _ in given.tables() if given else ():
        writer.add(table.filter(pc.invert(_is_seed(table, task_set))))
    writer.close(rows_in=num_read, rows_made=made, dropped=reasons)
    write_rows(rejects, "reject/1", Reject.table(sorter.rejects))
    asked = task_set.to_sample_from("domain")
    write_rows(prompts, "prompt/2", Prompt.table([dict(prompt) for prompt in asked]))
    origins = Counter(row["origin"] for row in sorter.chats)
    kept = {**origins, **({"given": num_given} if num_given else {})}
    logger.info("%d chats %s, %d prompts; dropped: %s", writer.rows, kept, len(asked), dict(reasons))
    metrics = {
        "chats": writer.rows,
        **{f"chats_{origin}": origins[origin] for origin in ORIGINS},
        **({"chats_given": num_given} if num_given else {}),
        "augmented_fraction": origins["augmented"] / max(1, len(sorter.chats)),
        "prompts": len(asked),
        "rejects": len(sorter.rejects),
        **{f"rejects_{reason}": count for reason, count in sorted(reasons.items())},
    }
    return {f"synthetic_data/{name}": float(value) for name, value in metrics.items()}


def _is_seed(table: pa.Table, tasks: Tasks) -> pa.ChunkedArray:
    """Which chats are questions of a task, as preflight made them."""
    is_own = pc.is_in(table["task"], pa.array(list(tasks.configs), pa.string()))
    return pc.and_(pc.is_in(table["origin"], pa.array(["seed", "replay"])), is_own)


def _seeds(given: Shards | None, tasks: Tasks) -> dict[str, list[Row]]:
    """The tasks' own chats by the role of their task, in stored order."""
    found: dict[str, list[Row]] = {"domain": [], "safety": [], "general": []}
    for table, _ in given.tables() if given else ():
        for row in table.filter(_is_seed(table, tasks)).to_pylist():
            found[tasks.configs[row["task"]].role].append(row)
    return found


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

    def take(self, seed: Row) -> None:
        """Keep a task's own chat, if it may be kept."""
        facts = {name: seed[name] for name in ("tools", "task", "origin", "parent")}
        self.add(seed["messages"], **facts)

    def add(self, messages: list[Turn], *, task: str, origin: str, parent: str, tools: str = "") -> bool:
        """Keep a sample that is new, verified, and asked by no evaluation set, and tell whether it is; `messages` end
        with the answer."""
        *asked, last = messages
        prompt, answer = as_text(asked), last["content"]
        sample = content_id(task, identity(asked, tools), answer)
        reason, detail = self._verdict(task, prompt, answer, origin)
        if reason:
            facts = {"source": f"{origin}:{parent}", "reason": reason, "detail": detail}
            self.rejects.append({"id": sample, **facts, "text": f"{prompt}\n\n{answer}"[:500]})
            return False
        self._seen.setdefault(_loose(prompt), sample)
        self._wordings.add(_exact(prompt))
        facts = {"tools": tools, "task": task, "origin": origin, "parent": parent}
        self.chats.append({"id": sample, "messages": messages, **facts})
        return True

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


def _extract(sorter: _Sorter, config: SyntheticDataConfig, documents: list[Row]) -> list[tuple[Source, Row]]:
    """Add every question that is found in documents; those that are kept, each with its chat."""
    kept = []
    for number, document in enumerate(documents):
        for pattern, source in _found_in(document["text"], number, config.extract):
            messages = chat(source.question, source.answer)
            if sorter.add(messages, task=pattern.task, origin="document", parent=document["id"]):
                kept.append((source, sorter.chats[-1]))
    return kept


def _found_in(text: str, number: int, patterns: list[ExtractConfig]) -> Iterator[tuple[ExtractConfig, Source]]:
    """Every match in the document of that number."""
    for pattern in patterns:
        for match in re.finditer(pattern.pattern, text, re.MULTILINE):
            fields = {name: (value or "").strip() for name, value in match.groupdict().items()}
            prompt, answer = (template.format_map(fields) for template in (pattern.prompt, pattern.answer))
            yield pattern, Source(prompt, answer, number, *match.span())


def _recombine(sorter: _Sorter, config: SyntheticDataConfig) -> None:
    """Ask every chat so far about other things, `recombined_per_chat` times."""
    parents = list(sorter.chats)
    numbers = numbers_in([parent["messages"][-1]["content"] for parent in parents])
    rng = random.Random(config.seed)
    for parent in filter(_may_vary, parents):
        question, answer = (turn["content"] for turn in parent["messages"][-2:])
        for _ in range(config.recombined_per_chat):
            asked, answered = recombine(question, answer, config.entities, numbers, rng)
            if asked != question:
                sorter.add(_other(parent, asked, answered), **_lineage(parent, "recombined"))


def _augment(sorter: _Sorter, config: SyntheticDataConfig) -> None:
    """Vary chats in random order, each once, until their share is reached."""
    parents = list(sorter.chats)
    wanted = int(config.augmented_share / (1 - config.augmented_share) * len(parents))
    rng = random.Random(config.seed)
    available = rules(config.synonyms)
    for parent in filter(_may_vary, rng.sample(parents, len(parents))):
        if len(sorter.chats) - len(parents) >= wanted:
            return
        question, answer = (turn["content"] for turn in parent["messages"][-2:])
        varied = augment(question, available, rng)
        if varied != question:
            sorter.add(_other(parent, varied, answer), **_lineage(parent, "augmented"))


def _beside_documents(
    sorter: _Sorter, config: SyntheticDataConfig, sources: list[tuple[Source, Row]], documents: list[str]
) -> None:
    """Ask what was found in documents once more, beside some of them."""
    if config.raft:
        parents = dict(sources)
        for source, question, answer in raft.asked(list(parents), documents, config.raft, config.seed):
            sorter.add(chat(question, answer), **_lineage(parents[source], "raft"))


def _may_vary(chat: Row) -> bool:
    """Whether all of a chat is one question, with or without a system prompt: in a longer one the other turns would no
    longer fit."""
    return [turn["role"] for turn in chat["messages"] if turn["role"] != "system"] == ["user", "assistant"]


def _other(parent: Row, question: str, answer: str) -> list[Turn]:
    return [*parent["messages"][:-2], *chat(question, answer)]


def _lineage(parent: Row, origin: str) -> dict[str, str]:
    return {"task": parent["task"], "origin": origin, "parent": parent["id"], "tools": parent["tools"]}


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
