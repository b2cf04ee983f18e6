"""What fits into a model's context, and what becomes of a question that does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import templates

TooLong = Literal["drop", "truncate_left", "error"]
"""What becomes of a row of more tokens than `max_length`, and of a question that leaves no room for its answer."""


def context_tokens(config: Any, tokenizer: Any) -> int:
    """Tokens that a prompt and its answer may have together, by a model's config."""
    known = positions(config)
    return int(tokenizer.model_max_length if math.isinf(known) else known)


def positions(config: Any) -> float:
    """Positions that a model knows by its config; one that names none (Mamba's) sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def check_positions(config: Any, longest: int, where: str) -> None:
    """Raise ConfigError if rows of `longest` tokens are more than the positions that a model knows by its config.

    RoPE takes any position without a word, and is untrained beyond these. `where` is the section of the recipe that
    trains.
    """
    known = positions(config)
    if longest > known:
        raise ConfigError(
            f"{where}: rows have up to {longest} tokens and the model knows {known} positions "
            f"(max_position_embeddings); set {where}.max_length to at most {known}, or let a stage cpt learn more of "
            "them first, by its `rope_scaling`"
        )


def check_embedded(config: Any, tokenizer: Any, highest: Callable[[], int], where: str) -> None:
    """Raise DataError if `highest`, the highest token of some text, is an added one that a model has, by its config, no
    embedding of: see `checkpoints.check_vocabulary`. It is asked only where there are such. `where` is what reads the
    text."""
    known = config.get_text_config().vocab_size
    if len(tokenizer) > known and (token := highest()) >= known:
        raise DataError(
            f"{where}: found {tokenizer.decode([token])!r}, which is token {token:,}, and the model has embeddings for "
            f"{known:,}; leave out what names it"
        )


def fitting(
    tokenizer: Any,
    conversations: Sequence[Sequence[dict[str, Any]]],
    tools: Sequence[str],
    room: int,
    too_long: TooLong,
    where: str,
    limit: str = "the model's context",
) -> list[list[dict[str, Any]] | None]:
    """Each conversation, with its tools, as it can be asked in `room` tokens, or None where it is left out.

    `truncate_left` takes the beginning off the last turn, token by token; the turns before it stay, and where they fill
    the room alone it is left out. `where` names the questions in errors, `limit` what leaves no more room.
    Raises: DataError with the longest for `too_long` error, and where all are left out.
    """
    fixed: dict[tuple[str, ...], int] = {}
    found: list[list[dict[str, Any]] | None] = []
    longest = 0
    for messages, own in zip(conversations, tools, strict=True):
        form = (own, *(message["role"] for message in messages))
        is_plain = not any(message.get("tool_calls") or message.get("reasoning") for message in messages)
        if is_plain and form not in fixed:
            bare = [{**message, "content": "?"} for message in messages]
            fixed[form] = len(templates.prompt_tokens(tokenizer, bare, own))
        # No token is shorter than a byte, so most need not be counted.
        if is_plain and fixed[form] + sum(len(message["content"].encode()) for message in messages) <= room:
            found.append(list(messages))
            continue
        length = len(templates.prompt_tokens(tokenizer, messages, own))
        longest = max(longest, length)
        if length <= room:
            found.append(list(messages))
        else:
            found.append(_cut(tokenizer, list(messages), own, room) if too_long == "truncate_left" else None)
    num_left_out = sum(messages is None for messages in found)
    if num_left_out and (too_long == "error" or num_left_out == len(found)):
        other = {"error": ", or set too_long to drop or truncate_left", "drop": ", or set too_long to truncate_left"}
        raise DataError(
            f"{where}: {num_left_out} of {len(found)} questions do not fit: the longest has {longest} tokens, and "
            f"{limit} leaves {max(0, room)} beside an answer of `max_new_tokens`; shorten them or lower the task's "
            f"max_new_tokens{other.get(too_long, '')}"
        )
    return found


def _cut(tokenizer: Any, messages: list[dict[str, Any]], tools: str, room: int) -> list[dict[str, Any]] | None:
    ids = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
    while ids:
        # A sign of several tokens that was cut in two is gone whole.
        cut = [*messages[:-1], {**messages[-1], "content": tokenizer.decode(ids).lstrip("\ufffd")}]
        over = len(templates.prompt_tokens(tokenizer, cut, tools)) - room
        if over <= 0:
            return cut
        ids = ids[over:]
    return None
