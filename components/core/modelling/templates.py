"""Chats as the tokens of a model: one function renders what training, evaluation and serving see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prompt_tokens(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> list[int]:
    """The token ids of a conversation as the model is asked to go on with it: the assistant's turn is open."""
    text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_tokens(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """(token ids, which of them have a loss) of a whole chat: the assistant's turns, with the end of each."""
    encoded = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
    return encoded["input_ids"], [bool(own) for own in encoded["assistant_masks"]]
