"""What a model's answers to validation questions are worth, while it is trained or cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bloomery.components.core.modelling.context import context_tokens, fitting
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks


def questions(tasks: Tasks, names: Sequence[str], count: int) -> list[Any]:
    """`count` validation questions of the tasks `names` (none: of all), the first by id, which is no order of
    meaning."""
    return sorted(tasks.validation_questions(names), key=lambda row: row.id)[:count]


def scores(model: Any, tokenizer: Any, tasks: Tasks, rows: Sequence[Any], where: str) -> list[float]:
    """The scores of greedy answers to questions of `tasks`.

    They are asked as in evaluation, with the task's shots and up to its `max_new_tokens`; one that leaves no room in
    the model's context is not asked. `where` names the questions in errors.
    Raises: DataError if no question of a task leaves room.
    """
    found: list[float] = []
    for name in sorted({row.task for row in rows}):
        mine = [row for row in rows if row.task == name]
        longest = tasks.configs[name].max_new_tokens
        room = context_tokens(model.config, tokenizer) - longest
        tools = [row.tools for row in mine]
        asked = fitting(tokenizer, tasks.conversations(mine), tools, room, "drop", f"{where}: tasks.{name}")
        kept = [(row, messages) for row, messages in zip(mine, asked, strict=True) if messages]
        answers = Generator(model, tokenizer).generate(
            [messages for _, messages in kept], tools=[row.tools for row, _ in kept], max_new_tokens=longest
        )
        found += [tasks.verify(name, text, row.reference)[0] for (row, _), (text,) in zip(kept, answers, strict=True)]
    return found


def scorer(tasks: Tasks, tokenizer: Any, names: Sequence[str], count: int, where: str) -> Callable[[Any], float] | None:
    """A function of a model: the mean of its `scores` on `questions`; None where there is no question."""
    rows = questions(tasks, names, count)
    if not rows:
        return None

    def score(model: Any) -> float:
        found = scores(model, tokenizer, tasks, rows, where)
        return sum(found) / len(found)

    return score
