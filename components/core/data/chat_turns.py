"""Turns of a conversation and definitions of tools as files hold them, read into messages, and the order of turns.

What does not fit is refused with a reason, never repaired: what was repaired in silence is learnt in silence.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from bloomery.components.core.data.chats import Turn, message, said
from bloomery.components.core.data.json_rows import MAX_DEPTH, is_too_deep

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""What speakers are called in files; `call` is ShareGPT's turn that holds an assistant's tool calls alone."""

_SPEAKERS = (("messages", "role"), ("sharegpt", "from"))
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")


class Unfit(Exception):
    """A row that is no conversation or pair; `reason` is what it is counted by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_turns(value: Any) -> tuple[str, list[Turn]]:
    """(form, turns) of a list of turns, or of its JSON text. Raises: Unfit."""
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


def text_of(value: Any, where: str) -> str:
    """A text, '' where it is missing. Raises: Unfit, naming `where`, for anything else."""
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise Unfit("not_text", f"{where} is {_kind(value)}")
    return value


def is_missing(value: Any) -> bool:
    """True for null, and for the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and value != value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if is_missing(value) else names.get(type(value), type(value).__name__)


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
        named = {field: text_of(turn.get(field), field) for field in ("tool_call_id", "name")}
        return message(role, _content(turn.get(text)), **named)
    weight = turn.get("weight")
    is_marked = any(turn.get(mark) is False for mark in ("train", "training", "loss"))
    if is_marked or not (is_missing(weight) or weight == 1):
        raise Unfit("untrained_turn", "a turn is marked as not to be learnt; cut such chats, or take the mark away")
    calls = turn.get("tool_calls")
    if is_missing(calls) and not is_missing(turn.get("function_call")):
        calls = [turn["function_call"]]
    thought = next((turn[field] for field in _THOUGHTS if not is_missing(turn.get(field)) and turn[field] != ""), "")
    return message(
        role,
        _content(turn.get(text)),
        reasoning=text_of(thought, "reasoning"),
        tool_calls=_calls(calls) if calls and not is_missing(calls) else "",
        name=text_of(turn.get("name"), "name"),
    )


def _content(value: Any) -> str:
    if isinstance(value, list):
        if any(not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS for part in value):
            raise Unfit("not_text", "a part that is no text")
        return "".join(text_of(part.get("text"), "a part") for part in value)
    return text_of(value, "content")


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
    return {"id": text_of(call.get("id"), "id of a tool call"), "name": called["name"], "arguments": arguments}


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
