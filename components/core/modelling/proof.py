"""What of a chat has to stand in its rendering, before a token of it is trained or asked."""

from __future__ import annotations

import bisect
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from bloomery.components.core.errors import ModelError


class EndInsideError(ModelError):
    """What a chat lets the assistant say holds the token that ends a turn: this chat cannot be trained, others can."""


def prove_prompt(text: str, messages: Sequence[dict[str, Any]], tools: str) -> None:
    """Raise ModelError unless the rendered prompt holds every message but the assistant's, and every tool."""
    for message in messages:
        content = message.get("content") or ""
        if message["role"] != "assistant" and content.strip() not in text and not _holds(text, content):
            raise ModelError(
                f"the chat template leaves out the {message['role']}'s turn {content[:200]!r}: this model knows no "
                f"such turns. It makes of the chat: {text[:600]!r}"
            )
    for tool in json.loads(tools) if tools else []:
        name = tool.get("function", tool).get("name", "")
        if f"{name}" not in text:
            raise ModelError(
                f"the chat template leaves out the tool {name!r}: this model knows no tools, and would be trained "
                f"and asked without them. Leave `tools` out, or take a model that has them. It makes of the chat: "
                f"{text[:600]!r}"
            )


def prove_answer(tokenizer: Any, ids: list[int], text: str, message: dict[str, Any]) -> None:
    """Raise ModelError unless `ids` decode to the beginning of `text`, which holds all of the turn, and end once;
    EndInsideError if nothing but an end inside of it is wrong."""
    decoded = tokenizer.decode(ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    left_out = []
    if not _plain(text).startswith(_plain(decoded)):
        left_out.append("tokens that decode to it")
    content = (message.get("content") or "").rpartition("</think>")[2]
    if content.strip() and _plain(content) not in _plain(decoded):
        left_out.append("its content")
    if not _holds(decoded, message.get("reasoning_content") or thought(message)):
        left_out.append("its reasoning")
    for call in message.get("tool_calls") or []:
        if not _holds(decoded, f"{call['function']['name']} {_values(call['function']['arguments'])}"):
            left_out.append(f"the call of {call['function']['name']}")
    is_ended_inside = ids[-1] in ids[:-1]
    if is_ended_inside and not left_out:
        raise EndInsideError(
            f"an assistant turn says what ends a turn ({tokenizer.decode(ids[-1:])!r}), so that the model would learn "
            f"to stop there and to go on: {shown([message])}"
        )
    if left_out:
        raise ModelError(
            f"an assistant turn comes through the chat template without {', '.join(left_out)}: {shown([message])}. "
            f"What would be trained: {decoded[:600]!r}"
        )


def thoughts_end(tokenizer: Any, ids: list[int], marker: Sequence[int], message: dict[str, Any]) -> int:
    """Where in the `ids` of a turn its thoughts end, with what closes them: the tokens `marker`, or `</think>`; 0 of a
    turn without, and all of one whose thought is not closed, or has no answer after it.

    Raises: ModelError unless what follows decodes to the turn's content, or holds it beside its calls.
    """
    said = message.get("content") or ""
    is_open = said.lstrip().startswith("<think>") and "</think>" not in said
    if is_open or (thought(message) and not said.rpartition("</think>")[2].strip() and not message.get("tool_calls")):
        return len(ids)
    places = range(len(ids) - len(marker), -1, -1) if marker else ()
    end = next((at + len(marker) for at in places if ids[at : at + len(marker)] == list(marker)), 0)
    if not end and (times := tokenizer.decode(ids).count("</think>")):
        counts = range(len(ids) + 1)
        end = bisect.bisect_left(counts, times, key=lambda count: tokenizer.decode(ids[:count]).count("</think>"))
    decoded = tokenizer.decode(ids[end:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    content = _plain(said.rpartition("</think>")[2])
    is_whole = content in _plain(decoded) if message.get("tool_calls") else content == _plain(decoded)
    told = (message.get("reasoning_content") or thought(message)).strip()
    if not is_whole or "</think>" in decoded or (told and not end):
        raise ModelError(
            "train_reasoning: false, and it cannot be told where the thoughts of a turn end and its answer begins: "
            f"{shown([message])}. What would be trained: {decoded[:600]!r}; set train_reasoning: true, or leave such "
            "chats out"
        )
    return end


def thought(message: dict[str, Any]) -> str:
    """The reasoning that stands in a message's content."""
    return (message.get("content") or "").rpartition("</think>")[0].rpartition("<think>")[2]


def answer(text: str) -> str:
    """What is answered in a text that may begin with reasoning."""
    return text.rpartition("</think>")[2].strip()


def _plain(text: str) -> str:
    """What is left of a text when a tokenizer's normaliser went over it."""
    return unicodedata.normalize("NFKC", text).strip()


def _holds(text: str, content: str) -> bool:
    """Whether every word of `content` stands in `text`, which may have escaped or laid it out in another way."""
    return all(word in text for word in re.findall(r"[^\W_]{2,}", _plain(re.sub(r"\\u[0-9a-f]{4}|\\.", " ", content))))


def _values(arguments: Any) -> str:
    """The keys and values of a call's arguments, as text."""
    held: Any = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    parts: Iterable[Any] = held if isinstance(held, list) else [*held.keys(), *held.values()]
    return " ".join(_values(part) if isinstance(part, dict | list) else str(part) for part in parts)


def shown(messages: Sequence[dict[str, Any]]) -> str:
    return json.dumps(
        [{key: value for key, value in message.items() if value} for message in messages], ensure_ascii=False
    )[:600]
