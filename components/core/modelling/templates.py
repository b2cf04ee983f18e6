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


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text that is read whole: BOS where the tokenizer has one, then the text, and no EOS."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
