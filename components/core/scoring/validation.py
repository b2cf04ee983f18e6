"""What a model's answers to validation questions are worth, while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bloomery.components.core.modelling.context import context_tokens, fitting
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks


def scorer(tasks: Tasks, tokenizer: Any, names: Sequence[str], count: int, where: str) -> Callable[[Any], float] | None:
    """A function of a model: the mean score of its greedy answers to `count` validation questions of the tasks `names`
    (none: of all), the first by id; None where there is no question.

    They are asked as in evaluation, with the task's shots and up to its `max_new_tokens`; one that leaves no room in
    the model's context is not asked. `where` names the questions in errors.
    """
    rows = sorted(tasks.validation_questions(names), key=lambda row: row.id)[:count]
    if not rows:
        return None

    def score(model: Any) -> float:
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
            found += [
                tasks.verify(name, texts[0], row.reference)[0] for (row, _), texts in zip(kept, answers, strict=True)
            ]
        return sum(found) / len(found)

    return score
