"""A task: questions made from the user's rows by templates, and the verifier that knows a right answer.

preflight renders every task of the recipe into one artifact, `tasks/1`: `part-*.parquet` of prompt/2 rows, the task
configs in `tasks.json`, and the verifiers' databases in `files/`. Steps read tasks from there and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from bloomery.components.core.artifact import wrong_schema
from bloomery.components.core.config import Config
from bloomery.components.core.data import render
from bloomery.components.core.data.chat_forms import read_question
from bloomery.components.core.data.chat_turns import Unfit
from bloomery.components.core.data.chats import Turn, chat, message
from bloomery.components.core.data.tables import RowSource
from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.verify import VerifierConfig, verify

TRAINING_SPLITS = ("train", "unlabelled")
"""Splits a model may learn from: `train` with its answers, `unlabelled` through the verifier alone."""
Perturbation = Literal["typos", "spacing"]


class Template(Config):
    """A phrasing: `{field}` stands for a field of the row, `{answers.text.0}` reaches into one, `{{` is a brace."""

    prompt: str = ""
    """The user's turn; empty for a perplexity task, and where `messages` are given."""
    system: str = ""
    """The system prompt before it; of `messages`, of those that have none of their own."""
    messages: str = ""
    """Field that holds a whole conversation, such as `messages` or `data.conversations`: OpenAI's or ShareGPT's turns,
    or their JSON. The tools that may be called are the row's `tools`."""
    answer: str = ""
    """The reference answer; empty, with `messages` alone: what their last turn, the assistant's, says."""

    @model_validator(mode="after")
    def _asks_once(self) -> Template:
        if self.messages and self.prompt:
            raise ValueError("`prompt` and `messages` both say what is asked; give one of them")
        if not self.messages and not self.answer:
            raise ValueError("answer: missing; only a template with `messages` can take it from the conversation")
        if self.system and not self.messages and not self.prompt:
            raise ValueError("system: stands before a question, and there is none; give `prompt` or `messages`")
        return self

    @field_validator("messages")
    @classmethod
    def _is_field(cls, field: str) -> str:
        if "{" in field:
            raise ValueError(f"{field!r} is a template; expected the name of a field, {field.strip('{}')!r}")
        return field

    @field_validator("prompt", "system", "answer")
    @classmethod
    def _is_template(cls, text: str) -> str:
        return render.check(text)


class SplitConfig(RowSource):
    """Where the rows of a split come from, and how they are asked."""

    templates: list[Template] = []
    """Phrasings; every row is asked in each. Empty: those of the task."""
    joins: Literal["train", "unlabelled", "validation"] | None = None
    """Split that these rows are counted to, such as `train` for served questions whose answers arrived; none: they are
    a split of their own."""
    group: str | None = None
    """Template of the slice, where rows have other fields than the task's `group` names; none: that of the task."""


class TaskConfig(Config):
    """One task of the recipe."""

    role: Literal["domain", "general", "safety"]
    """`domain`: what the model is adapted to; `general`: what it must not forget; `safety`: a score of 1 means that it
    behaved rightly: it refused a harmful question, or answered a harmless one."""
    templates: list[Template] = []
    """Phrasings for the splits that name none."""
    group: str = ""
    """`{field}` template of the slice that results are also reported by, such as `{language}`; evaluation sets alone
    need the field."""
    splits: dict[str, SplitConfig]
    """`train`, `unlabelled` and `validation` are used in training; every other name is an evaluation set."""
    verifier: VerifierConfig
    """How answers are scored."""
    max_new_tokens: int = Field(default=96, gt=0)
    """Longest answer, in tokens of the model."""
    shots: int = Field(default=0, ge=0)
    """Solved examples from `train` before each question of an evaluation set, as turns of the chat; training sees
    none."""
    perturbations: list[Perturbation] = []
    """Each makes of every evaluation set a second one, `<set>+<perturbation>`, whose questions are harder to read:
    `typos` (a wrong, missing or doubled letter; within Hangul, of a jamo) or `spacing` (spaces lost and put in
    between)."""

    @model_validator(mode="after")
    def _has_templates(self) -> TaskConfig:
        bare = [name for name, split in self.splits.items() if not split.templates and not self.templates]
        if bare:
            raise ValueError(
                f"no templates for split {', '.join(bare)}; give `templates` for the task or for the split"
            )
        if self.verifier.kind == "sql_execution" and not self.verifier.databases:
            raise ValueError("verifier sql_execution needs `databases`")
        if self.shots and "train" not in self.splits:
            raise ValueError("shots are taken from the split `train`, and there is none; add it, or set shots to 0")
        if self.perturbations and self.verifier.kind == "perplexity":
            raise ValueError("perturbations change the question, and a perplexity task has none; leave them out")
        if self.verifier.kind == "refusal" and "unlabelled" in map(self.counted_to, self.splits):
            raise ValueError(
                "unlabelled: to the verifier refusal whatever does not refuse is right, so wrong answers to harmless "
                "questions would be learnt; give the split its answers and name it train, or leave it out"
            )
        return self

    def counted_to(self, split: str) -> str:
        """The split that the rows of an entry of `splits` belong to: the one it joins, or itself."""
        return self.splits[split].joins or split

    def evaluation_sets(self) -> list[str]:
        """Names of the evaluation sets, perturbed ones among them."""
        plain = [name for name in self.splits if is_evaluation(self.counted_to(name))]
        return [name + suffix for name in plain for suffix in ("", *(f"+{kind}" for kind in self.perturbations))]

    def templates_of(self, split: str) -> list[Template]:
        """Every phrasing of the rows of a rendered split: with what joins it, and `<set>+<perturbation>` as `<set>`."""
        whole = split.partition("+")[0]
        sources = [source for name, source in self.splits.items() if self.counted_to(name) == whole]
        return [template for source in sources for template in source.templates or self.templates]


class Tasks:
    """The tasks of a run, read from a `tasks/1` artifact."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        from bloomery.components.core.records import Prompt

        self._path = path
        raw = json.loads((path / "tasks.json").read_text(encoding="utf-8"))
        self.configs = {name: TaskConfig.model_validate(value) for name, value in raw.items()}
        files = sorted(path.glob("part-*.parquet"))
        found = (pq.read_schema(files[0]).metadata or {}).get(b"schema", Prompt.SCHEMA.encode()).decode()
        if found != Prompt.SCHEMA:
            raise wrong_schema(path, found, Prompt.SCHEMA)
        table = pq.read_table(files, schema=Prompt.arrow())
        self._rows = [Prompt.model_construct(**row) for row in table.to_pylist()]

    def prompts(self, *splits: str, task: str | None = None) -> list[Any]:
        """The prompt/2 rows of `splits` (none named: of the evaluation sets), of one task or of all, in stored
        order."""
        return [
            row
            for row in self._rows
            if (row.split in splits if splits else is_evaluation(row.split)) and task in (None, row.task)
        ]

    def to_sample_from(self, role: str) -> list[Any]:
        """The questions of the tasks of `role` that answers may be sampled for: the unlabelled ones, or the training
        ones where there are none; texts without a question are left out."""
        for split in ("unlabelled", "train"):
            rows = [row for row in self.prompts(split) if row.messages and self.configs[row.task].role == role]
            if rows:
                return rows
        return []

    def shots(self, task: str) -> list[Turn]:
        """The messages that stand before each evaluation question of `task`: its `shots` train rows with the smallest
        ids, which are content hashes and so in no order of meaning."""
        first = sorted(self.prompts("train", task=task), key=lambda row: row.id)[: self.configs[task].shots]
        return [turn for row in first for turn in answered(vars(row)) if turn["role"] != "system"]

    def conversations(self, rows: Iterable[Any]) -> list[list[Turn]]:
        """What each of `rows`, evaluation questions, is asked as: its shots stand after its system prompt."""
        shots = {name: self.shots(name) for name in self.configs}
        asked = []
        for row in rows:
            at = sum(turn["role"] == "system" for turn in row.messages[:1])
            asked.append([*row.messages[:at], *shots[row.task], *row.messages[at:]])
        return asked

    def check_named(self, names: Sequence[str], where: str) -> None:
        """Raise DataError, naming `where`, if one of `names` is no task."""
        if lacking := [name for name in names if name not in self.configs]:
            raise DataError(f"{where}: found {', '.join(lacking)}; the recipe's tasks are {', '.join(self.configs)}")

    def validation_questions(self, tasks: Sequence[str] = ()) -> list[Any]:
        """The questions of the `validation` splits, of `tasks` or of all."""
        asked = [row for row in self.prompts("validation") if not self.is_scored_by_likelihood(row.task)]
        return [row for row in asked if not tasks or row.task in tasks]

    def validation_chats(self, tasks: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Every question of `validation_questions` with its answer, whose loss fine-tuning watches: `messages` and
        `tools` of each."""
        return [{"messages": answered(vars(row)), "tools": row.tools} for row in self.validation_questions(tasks)]

    def texts_to_read(self, tasks: Sequence[str] = (), *, is_general: bool) -> list[str]:
        """The `train` rows of perplexity tasks, of `tasks` or of all, which have no question: fine-tuning reads them
        whole beside the chats. Those of general tasks are replayed, so that a model that learns to answer does not
        forget how texts go on; those of the others are learnt."""
        read = [row for row in self.prompts("train") if self.is_scored_by_likelihood(row.task)]
        kind = [row for row in read if (self.configs[row.task].role == "general") == is_general]
        return [row.reference for row in kind if not tasks or row.task in tasks]

    def is_scored_by_likelihood(self, task: str) -> bool:
        """True for perplexity tasks, whose rows have no answer to verify."""
        return self.configs[task].verifier.kind == "perplexity"

    def verify(self, task: str, response: str, reference: str) -> tuple[float, str]:
        """(score in [0, 1], reason) of a response to a prompt of `task`."""
        verifier = self.configs[task].verifier
        databases = [self._path / "files" / name for name in verifier.databases]
        return verify(verifier, response, reference, databases)


class Question(NamedTuple):
    """What a template makes of a row."""

    messages: list[Turn]
    """What the answer goes on from; nothing for a text whose perplexity is measured."""
    tools: str
    reference: str
    problem: str
    """'' or why the row asks nothing: `empty_question`, `empty_answer`, or what its conversation or a template does not
    take."""


def ask(template: Template, row: dict[str, Any]) -> Question:
    """The question of a row."""
    filled = [render.template(text).fill(row) for text in (template.system, template.prompt, template.answer)]
    if problem := next((part.problem for part in filled if part.problem), ""):
        return Question([], "", "", problem)
    system, prompt, answer = (part.text for part in filled)
    first = [message("system", system)] if system.strip() else []
    if not template.messages:
        problem = "empty_question" if template.prompt and not prompt.strip() else ""
        messages = [*first, *chat(prompt)] if template.prompt else []
        return Question(messages, "", answer, problem or ("" if answer.strip() else "empty_answer"))
    try:
        turns = render.value(template.messages, row)
        if turns is None and render.template(f"{{{template.messages}}}").fill(row).problem:
            return Question([], "", "", "missing_field")
        read = read_question(turns, row.get("tools"), is_answered=not template.answer)
    except Unfit as error:
        return Question([], "", "", error.reason)
    messages = read.messages if template.answer else read.messages[:-1]
    answer = answer if template.answer else read.messages[-1]["content"]
    asked = messages if messages[0]["role"] == "system" else [*first, *messages]
    return Question(asked, read.tools, answer, "" if answer.strip() else "empty_answer")


def answered(row: Mapping[str, Any]) -> list[Turn]:
    """The conversation of a prompt/2 row with its reference as the answer."""
    return [*row["messages"], message("assistant", row["reference"])]


def is_evaluation(split: str) -> bool:
    """True if no training may see rows of this split."""
    return split not in (*TRAINING_SPLITS, "validation")
