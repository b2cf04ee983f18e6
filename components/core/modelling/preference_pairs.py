"""Preference pairs as tokens: dpo and reward models train on them, and preflight measures them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bloomery.components.core.data.chats import Turn, identity, said
from bloomery.components.core.modelling import templates
from bloomery.components.core.modelling.proof import EndInsideError
from bloomery.components.core.records import content_id


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of the two ways to go on from it, each with its end; of a single answer the other is
    empty."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer, which `max_length` bounds."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def chats(self) -> list[list[int]]:
        """The prompt with each of the two answers, the chosen one first."""
        return [self.prompt + self.chosen, self.prompt + self.rejected]

    def shortened(self, max_length: int) -> Pair | None:
        """With the end of its prompt that fits; None if no token of it does."""
        room = max_length - max(len(self.chosen), len(self.rejected))
        return Pair(self.prompt[-room:], self.chosen, self.rejected) if room > 0 else None


def pair_of(tokenizer: Any, row: Mapping[str, Any], *, takes_single: bool = False) -> tuple[Pair | None, str]:
    """(the tokens of a preference/3 row, ""), or (None, why it teaches nothing): `unpaired` (one of the two answers is
    not there, and none is taken alone), `scored` (a number tells what one is worth), `empty` (one is only blanks),
    `identical`, `end_inside` (one says what ends a turn).

    Raises: ModelError, with the text, if the template refuses it.
    """
    if fault := fault_of(row, takes_single=takes_single):
        return None, fault
    answers = (row["chosen"], row["rejected"])
    asked = templates.prompt_tokens(tokenizer, row["messages"], row["tools"])
    try:
        whole = [chat_tokens(tokenizer, row["messages"] + answer, row["tools"]) if answer else [] for answer in answers]
    except EndInsideError:
        return None, "end_inside"
    # Templates may render a prompt that is answered otherwise than one that is open: what goes on begins where they
    # part, as TRL has it.
    begin = min(len(os.path.commonprefix([asked, ids])) for ids in whole if ids)
    pair = Pair(next(filter(None, whole))[:begin], whole[0][begin:], whole[1][begin:])
    return (None, "identical") if pair.chosen == pair.rejected else (pair, "")


def scored_answer_of(tokenizer: Any, row: Mapping[str, Any]) -> tuple[Pair | None, str]:
    """(the tokens of a scored row of preference/3, ""), its answer in the place of the chosen one; or (None, why it
    teaches nothing): `empty` (it is only blanks), `end_inside` (it says what ends a turn).

    Raises: ModelError, with the text, if the template refuses it.
    """
    if not any(said(turn).strip() for turn in row["chosen"]):
        return None, "empty"
    try:
        ids = chat_tokens(tokenizer, row["messages"] + row["chosen"], row["tools"])
    except EndInsideError:
        return None, "end_inside"
    begin = len(templates.prompt_tokens(tokenizer, row["messages"], row["tools"]))
    return Pair(ids[:begin], ids[begin:], []), ""


def fault_of(row: Mapping[str, Any], *, takes_single: bool = False) -> str:
    """Why the answers of a preference/3 row are no pair to learn from: `scored` (one answer with a number), `unpaired`
    or `empty`, as in `pair_of`; "" if they are."""
    if row.get("score") is not None:
        return "scored"
    answers = (row["chosen"], row["rejected"])
    if not all(answers) and not (takes_single and any(answers)):
        return "unpaired"
    said_all = all(any(said(turn).strip() for turn in answer) for answer in answers if answer)
    return "" if said_all else "empty"


def is_held_out(row: Mapping[str, Any], share: float) -> bool:
    """Whether a preference/3 row is kept out of training, by its prompt: a `share` of all prompts is."""
    return int(content_id(identity(row["messages"], row["tools"]))[:8], 16) < share * 2**32


def chat_tokens(tokenizer: Any, messages: Sequence[Turn], tools: str) -> list[int]:
    """Token ids of a chat up to the end of its last answer: what templates write after it is neither learnt nor scored.

    Raises: ModelError if the answer's tokens cannot be told, EndInsideError if it says what ends a turn.
    """
    ids, trained = templates.trained_tokens(tokenizer, messages, tools, "last_turn")
    return ids[: max((index for index, own in enumerate(trained) if own), default=-1) + 1]
