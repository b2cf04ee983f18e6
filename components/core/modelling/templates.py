"""Chats as the tokens of a model: one function renders what training, evaluation and serving see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from bloomery.components.core.data.chats import for_template

TrainOn = Literal["all_turns", "last_turn"]


def prompt_tokens(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str = "") -> list[int]:
    """The token ids of a conversation as the model is asked to go on with it: the assistant's turn is open. `tools` is
    a JSON list of definitions, or ''."""
    text = tokenizer.apply_chat_template(
        for_template(messages), tools=_definitions(tools), add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_tokens(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: str = "", train_on: TrainOn = "all_turns"
) -> tuple[list[int], list[bool]]:
    """(token ids, which of them have a loss) of a whole chat: the assistant's turns, with the end of each; with
    `last_turn` the last of them alone."""
    encoded = tokenizer.apply_chat_template(
        for_template(messages), tools=_definitions(tools), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, own = encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]]
    if train_on == "last_turn":
        last = max(index for index, turn in enumerate(messages) if turn["role"] == "assistant")
        shared = len(prompt_tokens(tokenizer, messages[:last], tools))
        own = [mark and index >= shared for index, mark in enumerate(own)]
    return ids, own


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text that is read whole: BOS where the tokenizer has one, then the text, and no EOS."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def _definitions(tools: str) -> list[dict[str, Any]] | None:
    return json.loads(tools) if tools else None
