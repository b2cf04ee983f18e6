"""Conversations as messages: the one form in which rows hold them, and what is made of it for templates and readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from bloomery.components.core.data.tables import RowSource


class ChatSource(RowSource):
    """A source of chats or of preference pairs, in any of the forms that `chat_forms` reads."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Short name that chats, rejects and metrics are counted by."""


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


def said(turn: dict[str, Any]) -> str:
    """What is said in a turn, calls of tools as their JSON."""
    return "\n".join(filter(None, (turn["content"], turn.get("tool_calls"))))


def without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns but the system's, which many conversations share."""
    return [turn for turn in messages if turn["role"] != "system"]


def identity(messages: Sequence[dict[str, Any]], tools: str = "") -> str:
    """A text that is equal for equal conversations alone: of a lone user turn without tools, what it says."""
    if not messages:
        return ""
    first = str(messages[0]["content"])
    is_lone = not tools and list(messages) == chat(first)
    return first if is_lone else json.dumps([list(messages), tools], ensure_ascii=False, sort_keys=True)
