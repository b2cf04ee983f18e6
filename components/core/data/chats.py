"""Conversations as messages: the one form in which rows hold them, and what is made of it for templates and readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from bloomery.components.core.data.tables import RowSource


class ChatSource(RowSource):
    """A source of chats or of preference pairs, in any of the forms that `chat_forms` reads."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Short name that chats, rejects and metrics are counted by."""


CORRECTED = "corrected"
"""Origin of a chat in which a wrong answer is asked again: what it says before its last turn must not be learnt."""
EXERCISE = "replay"
"""Origin of a chat that is an exercise: a training question of a general task, with its answer, which is replayed."""
Turn = dict[str, str]
"""A row of `records.Message`: every field, '' where there is nothing."""


def message(
    role: str, content: str, *, reasoning: str = "", tool_calls: str = "", tool_call_id: str = "", name: str = ""
) -> Turn:
    """One turn; `tool_calls` is a JSON list of `{"id", "name", "arguments": {…}}`."""
    more = {"reasoning": reasoning, "tool_calls": tool_calls, "tool_call_id": tool_call_id, "name": name}
    return {"role": role, "content": content, **more}


def chat(prompt: str, answer: str | None = None) -> list[Turn]:
    """The messages of a single-turn chat."""
    user = message("user", prompt)
    return [user] if answer is None else [user, message("assistant", answer)]


def for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `apply_chat_template` takes: no empty field but the content, tool calls in OpenAI's form with their
    arguments as an object, reasoning as `reasoning_content`."""
    told = []
    for turn in messages:
        shown: dict[str, Any] = {"role": turn["role"], "content": turn.get("content") or ""}
        for field, name in (("reasoning", "reasoning_content"), ("tool_call_id", "tool_call_id"), ("name", "name")):
            if turn.get(field):
                shown[name] = turn[field]
        if turn.get("tool_calls"):
            shown["tool_calls"] = [
                {
                    **({"id": call["id"]} if call["id"] else {}),
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in json.loads(turn["tool_calls"])
            ]
        told.append(shown)
    return told


def as_text(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation to be read: a lone user turn as it is, else a line `role: content` each turn."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return "\n".join(f"{turn['role']}: {said(turn)}" for turn in messages)


def as_json(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as JSON that `chat_forms` reads again: its turns without their empty fields."""
    turns = [{field: text for field, text in turn.items() if text or field == "content"} for turn in messages]
    return json.dumps(turns, ensure_ascii=False)


def said(turn: dict[str, Any]) -> str:
    """What is said in a turn, calls of tools as their JSON."""
    return "\n".join(filter(None, (turn["content"], turn.get("tool_calls"))))


def without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns but the system's, which many conversations share."""
    return [turn for turn in messages if turn["role"] != "system"]


def changed(messages: Sequence[dict[str, Any]], change: Callable[[str], str]) -> list[dict[str, Any]]:
    """The turns with `change` applied to every text in them: contents, thoughts, and the values of what is JSON
    (results of tools, arguments of calls), which stays JSON. Names, ids and keys stay as they are."""
    told = []
    for turn in messages:
        new = {**turn, "content": _changed_text(turn["content"], change)}
        if turn.get("reasoning"):
            new["reasoning"] = change(turn["reasoning"])
        if turn.get("tool_calls"):
            calls = json.loads(turn["tool_calls"])
            calls = [{**call, "arguments": _changed_json(call["arguments"], change)} for call in calls]
            new["tool_calls"] = json.dumps(calls, ensure_ascii=False)
        told.append(new)
    return told


def _changed_text(text: str, change: Callable[[str], str]) -> str:
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
            new = _changed_json(value, change)
            return text if new == value else json.dumps(new, ensure_ascii=False)
        except (ValueError, RecursionError):
            return change(text)
    return change(text)


def _changed_json(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with its texts changed one by one, where an escape hides nothing, then as a whole, where a key tells what
    stands beside it; as a whole only if that leaves JSON of the same kind."""
    new = _walked(value, change)
    try:
        whole = json.loads(change(json.dumps(new, ensure_ascii=False)))
    except ValueError:
        return new
    return whole if isinstance(whole, type(new)) else new


def _walked(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _walked(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_walked(item, change) for item in value]
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if (text := change(str(value))) == str(value) else text
    return value


def identity(messages: Sequence[dict[str, Any]], tools: str = "") -> str:
    """A text that is equal for equal conversations alone: of a lone user turn without tools, what it says."""
    if not messages:
        return ""
    first = str(messages[0]["content"])
    is_lone = not tools and list(messages) == chat(first)
    return first if is_lone else json.dumps([list(messages), tools], ensure_ascii=False, sort_keys=True)
