"""Conversations and preference pairs as the field's files hold them, read into messages.

    messages            {"messages": [{"role", "content"}, …], "tools": […]}, as OpenAI's API takes them: content as
                        text or as text parts, tool calls with arguments as JSON text or object, `reasoning_content`
    sharegpt            {"conversations": [{"from", "value"}, …]} with human, gpt, system, function_call, observation …
    alpaca              {"instruction", "input", "output"}, also `context`, `system` and `history`
    prompt_completion   {"prompt", "completion"}, each as text or messages
    pairs               {"chosen", "rejected"} as text, messages or the transcripts of hh-rlhf, with a prompt or with
                        the beginning that both share; {"prompt", "completion", "label"} where one answer is known to be
                        good or bad (KTO), or with a number as `score` what it is worth

A row that does not fit is refused with a reason, as a turn is (`chat_turns`).
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from bloomery.components.core.data.chat_turns import (
    Unfit,
    check,
    check_question,
    is_missing,
    read_tools,
    read_turns,
    text_of,
)
from bloomery.components.core.data.chats import ChatSource, Turn, chat, message
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import rows_of
from bloomery.components.core.errors import DataError

_FORMS = (("messages",), ("conversations",), ("conversation",), ("instruction", "output"), ("prompt", "completion"))
"""Fields that a conversation stands in; the first form whose fields hold something is read."""
_LABELS = {"true": True, "1": True, "false": False, "0": False}
"""Labels of answers as tables without types write them."""
_MEDIA = ("images", "image", "videos", "audios", "audio")
PairKind = Literal["pair", "label", "score"]
"""What tells that an answer is good: another beside it, a label, or a number."""
_LEARNT_BY = {
    "pair": "two answers, which dpo and reward_model learn from",
    "label": "an answer with a label, which dpo learns from by `loss: kto`",
    "score": "an answer with a score, which reward_model learns from",
}
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


class Conversation(NamedTuple):
    """A chat as it was read."""

    form: str
    messages: list[Turn]
    tools: str


class Pair(NamedTuple):
    """Two answers to one conversation; one of them empty where a label, or a score, tells of the other alone."""

    form: str
    messages: list[Turn]
    tools: str
    chosen: list[Turn]
    rejected: list[Turn]
    score: float | None = None
    """What the chosen answer is worth, where a number tells it."""

    @property
    def kind(self) -> PairKind:
        """What tells that the answer is good."""
        if self.score is not None:
            return "score"
        return "pair" if self.chosen and self.rejected else "label"


def read_chat(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a row, which ends with an answer. Raises: Unfit."""
    label = _label(row)
    is_labelled = isinstance(label, bool) and ("completion" in row or isinstance(_raw_label(row), bool))
    if is_labelled or not _is_single(row):
        raise Unfit("preference", "the answers are compared or labelled; it belongs to `preferences`")
    return _conversation(row)


def chats_of(rows: Iterable[RawRow]) -> Iterator[tuple[list[Turn], str]]:
    """(messages, tools) of the rows that are chats, the others passed over."""
    for row in rows:
        with contextlib.suppress(Unfit):
            read = read_chat(row.value or {})
            yield list(read.messages), read.tools


def read_pair(row: Mapping[str, Any]) -> Pair:
    """The pair, or the labelled or scored answer, of a row. Raises: Unfit."""
    label = _label(row)
    if "chosen" in row and "rejected" in row and (is_missing(label) or not _is_single(row)):
        return _compared(row)
    if is_missing(label) and not is_missing(row.get("score")):
        score = _score(row["score"])
        form, messages, tools = _conversation(row)
        return Pair(f"scored_{form}", messages[:-1], tools, messages[-1:], [], score)
    if is_missing(label):
        raise Unfit("no_pair", f"neither chosen and rejected nor label nor score among the fields {', '.join(row)}")
    if not isinstance(label, bool):
        raise Unfit("wrong_label", f"{label!r}, expected true or false"[:80])
    form, messages, tools = _conversation(row)
    answer = messages[-1:]
    return Pair(f"labelled_{form}", messages[:-1], tools, answer if label else [], [] if label else answer)


def pair_reader(kinds: Collection[PairKind]) -> Callable[[Mapping[str, Any]], Pair]:
    """`read_pair`, which takes those of `kinds` alone, if any are named."""

    def read(row: Mapping[str, Any]) -> Pair:
        found = read_pair(row)
        if kinds and found.kind not in kinds:
            raise Unfit(found.kind, _LEARNT_BY[found.kind])
        return found

    return read


def pairs_of(rows: Iterable[RawRow]) -> Iterator[Pair]:
    """The rows that are preference pairs, or labelled or scored answers, the others passed over."""
    for row in rows:
        with contextlib.suppress(Unfit):
            yield read_pair(row.value or {})


def check_source(source: ChatSource, read: Callable[[Mapping[str, Any]], Any]) -> None:
    """Raise DataError, with what is wrong with its rows, if `read` finds none of the source to be a chat, or a pair. As
    a rule its first row is all that is read."""
    problems: Counter[str] = Counter()
    first = ""
    for row in rows_of(source):
        try:
            if row.value is not None:
                read(row.value)
                return
            reason, detail = row.problem, row.hint
        except Unfit as error:
            reason, detail = error.reason, "; ".join(part for part in (error.detail, row.hint) if part)
        problems[reason] += 1
        first = first or f"; the first is {row.uri} row {row.line}, {reason}" + (f": {detail}" if detail else "")
    raise DataError(nothing_in(source, problems, first))


def nothing_in(source: ChatSource, problems: Counter[str], first: str) -> str:
    """That no row of a source is a conversation, by what is wrong with how many of them; `first` tells the first."""
    if not problems:
        return f"{source.name}: there is no row in {source.path}; check the file, `where` and `share`"
    told = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
    return (
        f"{source.name}: no row of {source.path} can be learnt from ({told}{first}); expected "
        "messages, conversations, instruction and output, prompt and completion, or for `preferences` chosen and "
        "rejected, or a label or score; rows of other fields are asked through a task's templates"
    )


def read_question(value: Any, tools: Any, *, is_answered: bool) -> Conversation:
    """The turns of a field, with the definitions of their tools; with `is_answered` the last is the assistant's, else
    it is what the assistant goes on from. Raises: Unfit."""
    form, messages = read_turns(value)
    if is_answered:
        check(messages)
        if not messages[-1]["content"].strip():
            raise Unfit("empty_answer", "the last turn has no text to compare an answer with")
    else:
        check_question(messages)
    return Conversation(form, messages, read_tools(tools))


def _raw_label(row: Mapping[str, Any]) -> Any:
    return row.get("label", row.get("kto_tag"))


def _label(row: Mapping[str, Any]) -> Any:
    """Whether the row's answer is a good one; what stands there where it is neither true nor false."""
    label = _raw_label(row)
    if isinstance(label, int | float) and label in (0, 1):
        return bool(label)
    return _LABELS.get(label.strip().lower(), label) if isinstance(label, str) else label


def _score(value: Any) -> float:
    """A score, as a number or as text that is one."""
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool) and math.isfinite(score := float(value)):
            return score
    raise Unfit("wrong_score", f"{value!r}, expected a number"[:80])


def _is_single(row: Mapping[str, Any]) -> bool:
    """Whether there are no two answers to compare."""
    return is_missing(row.get("chosen")) and is_missing(row.get("rejected"))


def _conversation(row: Mapping[str, Any]) -> Conversation:
    present = [fields for fields in _FORMS if all(field in row for field in fields)]
    filled = (fields for fields in present if any(not is_missing(row[field]) and row[field] != [] for field in fields))
    fields = next(filled, present[0] if present else None)
    if fields is None:
        raise Unfit("unknown_form", f"fields: {', '.join(map(str, row))}"[:200])
    media = next((name for name in _MEDIA if row.get(name)), "")
    if media:
        raise Unfit("not_text", media)
    if fields == ("instruction", "output"):
        form, messages = "alpaca", [*_history(row), *chat(_instruction(row), text_of(row["output"], "output"))]
    elif fields == ("prompt", "completion"):
        form = "prompt_completion"
        messages = [*_side(row["prompt"], "user"), *_side(row["completion"], "assistant")]
    else:
        form, messages = read_turns(row[fields[0]])
    messages = _with_system(row, messages)
    check(messages)
    return Conversation(form, messages, read_tools(row.get("tools"), row.get("functions")))


def _compared(row: Mapping[str, Any]) -> Pair:
    chosen, rejected = (_side(row[side], "assistant") for side in ("chosen", "rejected"))
    sides = [row[side] for side in ("chosen", "rejected")]
    form = "pair_text" if all(isinstance(side, str) for side in sides) else "pair_messages"
    given = _given(row)
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        shared = _shared(chosen, rejected)
        if not shared or any(turn not in shared for turn in given):
            raise Unfit("prompts_differ", "the conversations do not begin alike, or not with the prompt")
        messages, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
        if not chosen and not rejected:
            raise Unfit("identical")
    else:
        messages = given
    messages = _with_system(row, messages)
    if not messages:
        raise Unfit("no_question", "chosen and rejected are answers alone, and there is no prompt")
    stripped = ([{**turn, "content": turn["content"].strip()} for turn in side] for side in (chosen, rejected))
    if operator.eq(*stripped):
        raise Unfit("identical")
    check_question(messages)
    for answer in (chosen, rejected):
        if not answer:
            raise Unfit("no_answer_at_end", "one conversation is the beginning of the other")
        if answer[0]["role"] != "assistant":
            raise Unfit("prompts_differ", f"the conversations part at a turn of {answer[0]['role']}")
        check([*messages, *answer])
    return Pair(form, messages, read_tools(row.get("tools"), row.get("functions")), chosen, rejected)


def _given(row: Mapping[str, Any]) -> list[Turn]:
    """What a pair of answers is given to beside them, or nothing."""
    for field in ("prompt", "messages", "conversations"):
        if not is_missing(row.get(field)):
            return _side(row[field], "user")
    return chat(_instruction(row)) if "instruction" in row else []


def _shared(chosen: list[Turn], rejected: list[Turn]) -> list[Turn]:
    """The turns that both conversations begin with."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    return chosen[:end]


def _with_system(row: Mapping[str, Any], messages: list[Turn]) -> list[Turn]:
    """The turns after the row's own system prompt, which stands beside them in some files."""
    name = "system_prompt" if is_missing(row.get("system")) else "system"
    system = text_of(row.get(name), name)
    if not system.strip() or (messages and messages[0] == message("system", system)):
        return messages
    return [message("system", system), *messages]


def _instruction(row: Mapping[str, Any]) -> str:
    parts = [text_of(row.get(field), field) for field in ("instruction", "input", "context")]
    return "\n".join(part for part in parts if part.strip())


def _history(row: Mapping[str, Any]) -> list[Turn]:
    """The earlier rounds of an Alpaca row, each a list of question and answer."""
    rounds = [] if is_missing(row.get("history")) else row["history"]
    if not isinstance(rounds, list) or any(not isinstance(part, list) or len(part) != 2 for part in rounds):
        raise Unfit("broken_history", "expected a list of [question, answer]")
    return [turn for part in rounds for turn in chat(*(text_of(text, "history") for text in part))]


def _side(value: Any, role: str) -> list[Turn]:
    """One side of a row: turns, a transcript, or the text of one turn of `role`."""
    if isinstance(value, str) and not _holds_turns(value):
        return _transcript(value) or [message(role, value)]
    if isinstance(value, str | list | dict):
        return read_turns([value] if isinstance(value, dict) else value)[1]
    return [message(role, text_of(value, f"a turn of {role}"))]


def _transcript(text: str) -> list[Turn]:
    """The turns of hh-rlhf's `\\n\\nHuman: …\\n\\nAssistant: …`; none where a text is something else."""
    if not text.startswith("\n\nHuman:"):
        return []
    _, *parts = _HH_TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [message(roles[who], words.strip()) for who, words in zip(parts[::2], parts[1::2], strict=True)]


def _holds_turns(text: str) -> bool:
    """Whether a text is the JSON of turns, as tables hold them that know no lists."""
    if not text.lstrip().startswith("[{"):
        return False
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
