"""Preference pairs as two chats of tokens, and the faults for which a pair is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import templates, training
from bloomery.components.core.modelling.preference_pairs import fault_of, is_held_out
from bloomery.components.core.modelling.proof import EndInsideError
from bloomery.components.core.modelling.reward_models import chat_tokens
from bloomery.components.reward_model.config import RewardModelConfig


@dataclass(frozen=True)
class Pair:
    """Token ids of two chats that answer one prompt, each to its end, and how long their answers are."""

    chosen: list[int]
    rejected: list[int]
    chosen_length: int
    rejected_length: int
    is_held_out: bool

    @property
    def both(self) -> list[list[int]]:
        """The two chats, the chosen one first."""
        return [self.chosen, self.rejected]

    def row(self) -> dict[str, list[int]]:
        """As the trainer takes it."""
        return {"chosen_ids": self.chosen, "rejected_ids": self.rejected}


def usable(
    tokenizer: Any, rows: list[dict[str, Any]], config: RewardModelConfig
) -> tuple[list[Pair], dict[str, float]]:
    """(the preference/3 rows that can be learnt from; what is told of the others).

    Told:   too_long (pairs of more than max_length tokens), too_long_fraction, and dropped_<reason>: `unpaired` (one of
            the two answers is not there), `empty` (one is only blanks), `identical`, `end_inside` (one says what ends a
            turn), `too_long`.
    Raises: DataError if none can be used, or one is too long and `too_long` is `error`.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    num_too_long = 0
    for row in rows:
        pair, reason = _pair(tokenizer, row, config)
        if pair and (length := max(len(pair.chosen), len(pair.rejected))) > config.max_length:
            num_too_long += 1
            if config.too_long == "error":
                raise DataError(
                    f"reward_model: the pair {row['id']} is {length} tokens long and reward_model.max_length is "
                    f"{config.max_length}, with reward_model.too_long: error; raise max_length, or set too_long to "
                    "drop or truncate_left"
                )
            pair, reason = _shortened(pair, config), "too_long"
        if pair:
            pairs.append(pair)
        else:
            dropped[reason] += 1
    training.warn_of_too_long(num_too_long, len(rows), "preference pairs", config.max_length, config.too_long)
    if not any(not pair.is_held_out for pair in pairs):
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none left out"
        raise DataError(
            f"reward_model: of {len(rows)} preference pairs none is left to learn from ({told}; {len(pairs)} held "
            "out); a pair needs two answers that differ and fit in reward_model.max_length = "
            f"{config.max_length} tokens with their prompt"
        )
    counts = {"too_long": float(num_too_long), "too_long_fraction": num_too_long / len(rows)}
    return pairs, counts | {f"dropped_{reason}": float(count) for reason, count in sorted(dropped.items())}


def _pair(tokenizer: Any, row: dict[str, Any], config: RewardModelConfig) -> tuple[Pair | None, str]:
    """(a row as a pair, ""), or (None, why it is none)."""
    if fault := fault_of(row):
        return None, fault
    answers = (row["chosen"], row["rejected"])
    try:
        chosen, rejected = (chat_tokens(tokenizer, row["messages"] + answer, row["tools"]) for answer in answers)
    except EndInsideError:
        return None, "end_inside"
    if chosen == rejected:
        return None, "identical"
    asked = len(templates.prompt_tokens(tokenizer, row["messages"], row["tools"]))
    held_out = is_held_out(row, config.validation_share)
    return Pair(chosen, rejected, len(chosen) - asked, len(rejected) - asked, held_out), ""


def _shortened(pair: Pair, config: RewardModelConfig) -> Pair | None:
    """The pair without as many tokens of its beginning as are too many, if that is wanted and leaves some of its
    prompt."""
    over = max(len(pair.chosen), len(pair.rejected)) - config.max_length
    if config.too_long != "truncate_left" or over >= len(pair.chosen) - pair.chosen_length:
        return None
    return Pair(pair.chosen[over:], pair.rejected[over:], pair.chosen_length, pair.rejected_length, pair.is_held_out)
