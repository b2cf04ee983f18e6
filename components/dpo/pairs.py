"""Preferences as tokens, and the faults for which one is left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bloomery.components.core.data.chats import said
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import templates, training
from bloomery.components.dpo.config import DpoConfig


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of the two ways to go on from it, each with its end; of a single answer the other is
    empty."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def usable(
    tokenizer: Any, rows: list[dict[str, Any]], config: DpoConfig
) -> tuple[list[tuple[dict[str, Any], Pair]], dict[str, float]]:
    """(the preference/2 rows that can be learnt from, each with its tokens; what is told of the others).

    Told:   too_long (pairs of more than max_length tokens), too_long_fraction, and dropped_<reason>: `unpaired` (one of
            the two answers is not there, which `loss: kto` alone can learn from), `empty` (one is only blanks),
            `identical`, `too_long`.
    Raises: DataError if there are rows and none can be used, or one is too long and `too_long` is `error`.
    """
    pairs: list[tuple[dict[str, Any], Pair]] = []
    dropped: Counter[str] = Counter()
    num_too_long = 0
    for row in rows:
        pair, reason = _pair(tokenizer, row, takes_single=config.loss == "kto")
        if pair and (length := _length(pair)) > config.max_length:
            num_too_long += 1
            if config.too_long == "error":
                raise DataError(
                    f"dpo: the pair {row['id']} is {length} tokens long and dpo.max_length is {config.max_length}, "
                    "with dpo.too_long: error; raise max_length, or set too_long to drop or truncate_left"
                )
            pair, reason = _shortened(pair, config), "too_long"
        if pair:
            pairs.append((row, pair))
        else:
            dropped[reason] += 1
    training.warn_of_too_long(num_too_long, len(rows), "preference pairs", config.max_length, config.too_long)
    if rows and not pairs:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise DataError(
            f"dpo: none of the {len(rows)} preference pairs can be learnt from: {told}; a pair needs two answers that "
            f"differ and fit in dpo.max_length = {config.max_length} tokens with their prompt"
            + ("; single answers with a label take dpo.loss: kto" if dropped["unpaired"] else "")
        )
    counts = {"too_long": float(num_too_long), "too_long_fraction": num_too_long / max(1, len(rows))}
    return pairs, counts | {f"dropped_{reason}": float(count) for reason, count in sorted(dropped.items())}


def _pair(tokenizer: Any, row: dict[str, Any], *, takes_single: bool) -> tuple[Pair | None, str]:
    """(the tokens of a row, ""), or (None, why it cannot be learnt from)."""
    answers = (row["chosen"], row["rejected"])
    if not all(answers) and not (takes_single and any(answers)):
        return None, "unpaired"
    if not all(any(said(turn).strip() for turn in answer) for answer in answers if answer):
        return None, "empty"
    asked = templates.prompt_tokens(tokenizer, row["messages"], row["tools"])
    whole = [_with_end(tokenizer, row["messages"] + answer, row["tools"]) if answer else [] for answer in answers]
    # Templates may render a prompt that is answered otherwise than one that is open: what goes on begins where they
    # part, as TRL has it.
    begin = min(len(os.path.commonprefix([asked, ids])) for ids in whole if ids)
    pair = Pair(next(filter(None, whole))[:begin], whole[0][begin:], whole[1][begin:])
    return (None, "identical") if pair.chosen == pair.rejected else (pair, "")


def _with_end(tokenizer: Any, messages: list[dict[str, str]], tools: str) -> list[int]:
    """Token ids of a chat to the last one that has a loss: what templates write after it is not learnt."""
    ids, trained = templates.trained_tokens(tokenizer, messages, tools, "last_turn")
    return ids[: max((index for index, own in enumerate(trained) if own), default=-1) + 1]


def _length(pair: Pair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _shortened(pair: Pair, config: DpoConfig) -> Pair | None:
    """The pair with the end of its prompt that fits, if that is what is wanted and a token of it does."""
    room = config.max_length - max(len(pair.chosen), len(pair.rejected))
    if config.too_long != "truncate_left" or room < 1:
        return None
    return Pair(pair.prompt[-room:], pair.chosen, pair.rejected)
