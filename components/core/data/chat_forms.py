"""Conversations and preference pairs as the field's files hold them, read into messages.

    messages            {"messages": [{"role", "content"}, …], "tools": […]}, as OpenAI's API takes them: content as
                        text or as text parts, tool calls with arguments as JSON text or object, `reasoning_content`
    sharegpt            {"conversations": [{"from", "value"}, …]} with human, gpt, system, function_call, observation …
    alpaca              {"instruction", "input", "output"}, also `system` and `history`
    prompt_completion   {"prompt", "completion"}, each as text or messages
    pairs               {"chosen", "rejected"} as text, messages or the transcripts of hh-rlhf, with a prompt or with
                        the beginning that both share; {"prompt", "completion", "label"} where one answer is known (KTO)

A row that does not fit is refused with a reason, never repaired: what was repaired in silence is learnt in silence.
"""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from bloomery.components.core.data.chats import Turn, chat, message, said
from bloomery.components.core.data.formats import MAX_DEPTH, RawRow, is_too_deep

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""What speakers are called in files; `call` is ShareGPT's turn that holds an assistant's tool calls alone."""

_FORMS = (("messages",), ("conversations",), ("conversation",), ("instruction", "output"), ("prompt", "completion"))
"""Fields that a conversation stands in; the first form whose fields hold something is read."""
_LABELS = {"true": True, "1": True, "false": False, "0": False}
"""Labels of answers as tables without types write them."""
_MEDIA = ("images", "image", "videos", "audios", "audio")
_SPEAKERS = (("messages", "role"), ("sharegpt", "from"))
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


class Unfit(Exception):
    """A row that is no conversation or pair; `reason` is what it is counted by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Conversation(NamedTuple):
    """A chat as it was read."""

    form: str
    messages: list[Turn]
    tools: str


class Pair(NamedTuple):
    """Two answers to one conversation; one of them empty where a label alone tells of the other."""

    form: str
    messages: list[Turn]
    tools: str
    chosen: list[Turn]
    rejected: list[Turn]


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
    """The pair, or the labelled answer, of a row. Raises: Unfit."""
    label = _label(row)
    if "chosen" in row and "rejected" in row and (is_missing(label) or not _is_single(row)):
        return _compared(row)
    if is_missing(label):
        raise Unfit("no_pair", f"neither chosen and rejected nor label among the fields {', '.join(row)}")
    if not isinstance(label, bool):
        raise Unfit("wrong_label", f"{label!r}, expected true or false"[:80])
    form, messages, tools = _conversation(row)
    answer = messages[-1:]
    return Pair(f"labelled_{form}", messages[:-1], tools, answer if label else [], [] if label else answer)


def read_question(value: Any, tools: Any, *, is_answered: bool) -> Conversation:
    """The turns of a field, with the definitions of their tools; with `is_answered` the last is the assistant's, else
    it is what the assistant goes on from. Raises: Unfit."""
    form, messages = _turns(value)
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


def _is_single(row: Mapping[str, Any]) -> bool:
    """Whether there are no two answers to compare."""
    return is_missing(row.get("chosen")) and is_missing(row.get("rejected"))


def is_missing(value: Any) -> bool:
    """True for null, and for the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and value != value)


def check(messages: list[Turn]) -> None:
    """Raises: Unfit unless the turns follow each other as chats do and end with the assistant's."""
    if all(turn["role"] != "assistant" for turn in messages):
        raise Unfit("no_assistant_turn")
    _check_order(messages)
    if messages[-1]["role"] != "assistant":
        raise Unfit("no_answer_at_end", f"ends with {messages[-1]['role']}")


def check_question(messages: list[Turn]) -> None:
    """Raises: Unfit unless the turns follow each other as chats do and end so that the assistant is to speak."""
    waiting = _check_order(messages)
    if messages[-1]["role"] not in ("user", "tool"):
        raise Unfit("no_question_at_end", f"ends with {messages[-1]['role']}")
    if waiting:
        raise Unfit("tool_call_without_result", "at the end")


def _check_order(messages: list[Turn]) -> list[str]:
    """The ids of the last tool calls that have no result. Raises: Unfit."""
    before = {"system": ("",), "user": ("", "system", "assistant"), "assistant": ("user", "tool"), "tool": ()}
    previous = ""
    waiting: list[str] = []
    for turn in messages:
        role = turn["role"]
        if role != "tool" and not said(turn).strip():
            raise Unfit("empty_turn", role)
        if role == "tool":
            waiting = _answered(waiting, turn["tool_call_id"])
        elif waiting:
            raise Unfit("tool_call_without_result", f"{role} after it")
        elif previous not in before[role]:
            raise Unfit("roles_out_of_order", f"{role} after {previous or 'nothing'}")
        if turn["tool_calls"]:
            waiting = [call["id"] for call in json.loads(turn["tool_calls"])]
        previous = role
    return waiting


def _answered(waiting: list[str], identity: str) -> list[str]:
    """The calls that still wait after the result of one; where a file names none, results stand in the calls' order."""
    for index, call in enumerate(waiting):
        if call == identity or not call or not identity:
            return waiting[:index] + waiting[index + 1 :]
    raise Unfit("tool_result_without_call", identity)


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
        form, messages = "alpaca", [*_history(row), *chat(_instruction(row), _text(row["output"], "output"))]
    elif fields == ("prompt", "completion"):
        form = "prompt_completion"
        messages = [*_side(row["prompt"], "user"), *_side(row["completion"], "assistant")]
    else:
        form, messages = _turns(row[fields[0]])
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
    system = _text(row.get("system"), "system")
    if not system.strip() or (messages and messages[0] == message("system", system)):
        return messages
    return [message("system", system), *messages]


def _instruction(row: Mapping[str, Any]) -> str:
    parts = [_text(row.get(field), field) for field in ("instruction", "input")]
    return "\n".join(part for part in parts if part.strip())


def _history(row: Mapping[str, Any]) -> list[Turn]:
    """The earlier rounds of an Alpaca row, each a list of question and answer."""
    rounds = [] if is_missing(row.get("history")) else row["history"]
    if not isinstance(rounds, list) or any(not isinstance(part, list) or len(part) != 2 for part in rounds):
        raise Unfit("broken_history", "expected a list of [question, answer]")
    return [turn for part in rounds for turn in chat(*(_text(text, "history") for text in part))]


def _text(value: Any, where: str) -> str:
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise Unfit("not_text", f"{where} is {_kind(value)}")
    return value


def _side(value: Any, role: str) -> list[Turn]:
    """One side of a row: turns, a transcript, or the text of one turn of `role`."""
    if isinstance(value, str) and not _holds_turns(value):
        return _transcript(value) or [message(role, value)]
    if isinstance(value, str | list | dict):
        return _turns([value] if isinstance(value, dict) else value)[1]
    return [message(role, _text(value, f"a turn of {role}"))]


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


def _turns(value: Any) -> tuple[str, list[Turn]]:
    """(form, turns) of a list of turns, or of its JSON text."""
    if isinstance(value, str) and value.strip():
        value = _parsed(value, "no_turns")
    if not isinstance(value, list) or not value:
        raise Unfit("no_turns", _kind(value))
    if any(not isinstance(turn, dict) for turn in value):
        raise Unfit("no_turns", "a turn is no object")
    forms = {_turn_form(turn) for turn in value}
    if "" in forms or len(forms) > 1:
        raise Unfit("mixed_turns", "expected role and content, or from and value, in every turn")
    form = forms.pop()
    return form, [_turn(turn, *(("role", "content") if form == "messages" else ("from", "value"))) for turn in value]


def _turn_form(turn: dict[str, Any]) -> str:
    """The form of a turn by the field that names its speaker; a table has both, one of them empty."""
    named = [form for form, speaker in _SPEAKERS if speaker in turn]
    filled = [form for form, speaker in _SPEAKERS if not is_missing(turn.get(speaker))]
    return (filled or named or [""])[0]


def _turn(turn: dict[str, Any], speaker: str, text: str) -> Turn:
    role = ROLES.get(turn[speaker]) if isinstance(turn[speaker], str) else None
    if role is None:
        raise Unfit("unknown_role", f"{turn[speaker]!r}"[:80])
    if role == "call":
        return message("assistant", "", tool_calls=_calls(turn.get(text)))
    if role != "assistant":
        if not is_missing(turn.get("tool_calls")) and turn["tool_calls"]:
            raise Unfit("broken_tool_call", f"in a turn of {role}")
        named = {field: _text(turn.get(field), field) for field in ("tool_call_id", "name")}
        return message(role, _content(turn.get(text)), **named)
    weight = turn.get("weight")
    if not (is_missing(weight) or weight == 1) or any(turn.get(mark) is False for mark in ("train", "training")):
        raise Unfit("untrained_turn", "a turn is marked as not to be learnt; cut such chats, or take the mark away")
    calls = turn.get("tool_calls")
    if is_missing(calls) and not is_missing(turn.get("function_call")):
        calls = [turn["function_call"]]
    thought = next((turn[field] for field in _THOUGHTS if not is_missing(turn.get(field)) and turn[field] != ""), "")
    return message(
        role,
        _content(turn.get(text)),
        reasoning=_text(thought, "reasoning"),
        tool_calls=_calls(calls) if calls and not is_missing(calls) else "",
        name=_text(turn.get("name"), "name"),
    )


def _content(value: Any) -> str:
    if isinstance(value, list):
        if any(not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS for part in value):
            raise Unfit("not_text", "a part that is no text")
        return "".join(_text(part.get("text"), "a part") for part in value)
    return _text(value, "content")


def _calls(value: Any) -> str:
    """The JSON that messages hold of an assistant's tool calls, given as list, as single call, or as JSON of either."""
    value = _parsed(value, "broken_tool_call") if isinstance(value, str) else value
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Unfit("broken_tool_call", "no call")
    return _dumped([_call(call) for call in calls], "broken_tool_call")


def _call(call: Any) -> dict[str, Any]:
    called = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(called, dict) or not isinstance(called.get("name"), str) or not called["name"]:
        raise Unfit("broken_tool_call", "a call without the name of its tool")
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "broken_tool_call")
    if not isinstance(arguments, dict):
        raise Unfit("broken_tool_call", f"the arguments of {called['name']} are {_kind(arguments)}, no object")
    return {"id": _text(call.get("id"), "id of a tool call"), "name": called["name"], "arguments": arguments}


def read_tools(*values: Any) -> str:
    """The JSON list of tool definitions in OpenAI's form, from the first of `values` that holds any; else ''.

    Raises: Unfit.
    """
    value = next((value for value in values if not is_missing(value) and value not in ("", [])), None)
    if value is None:
        return ""
    value = _parsed(value, "broken_tools") if isinstance(value, str) else value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise Unfit("broken_tools", f"{_kind(value)}, no list")
    if not value:
        return ""
    tools = [_parsed(tool, "broken_tools") if isinstance(tool, str) else tool for tool in value]
    told = []
    for tool in tools:
        definition = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(definition, dict) or not isinstance(definition.get("name"), str):
            raise Unfit("broken_tools", "a tool without a name")
        told.append(tool if "function" in tool else {"type": "function", "function": definition})
    return _dumped(told, "broken_tools")


def _dumped(value: Any, reason: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # JSON can name half of a surrogate pair, which is no text
    except (TypeError, ValueError) as error:
        raise Unfit(reason, f"not JSON: {error}"[:200]) from None
    return text


def _parsed(text: str, reason: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # JSON can name half of a surrogate pair, which is no text
        if is_too_deep(value):
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        return value
    except (ValueError, RecursionError) as error:
        raise Unfit(reason, f"not JSON: {error}"[:200]) from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if is_missing(value) else names.get(type(value), type(value).__name__)
