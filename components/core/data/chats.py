"""Conversations as messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def chat(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    """The messages of a single-turn chat."""
    user = {"role": "user", "content": prompt}
    return [user] if answer is None else [user, {"role": "assistant", "content": answer}]


def for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stored messages as `apply_chat_template` takes them: no empty fields, calls in OpenAI's form with their arguments
    as an object, reasoning as `reasoning_content`."""
    shaped = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value or key == "content"}
        if "reasoning" in kept:
            kept["reasoning_content"] = kept.pop("reasoning")
        if isinstance(kept.get("tool_calls"), str):
            kept["tool_calls"] = [
                {
                    "id": call.get("id", ""),
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in json.loads(kept["tool_calls"])
            ]
        shaped.append(kept)
    return shaped
