"""Which preference pairs can be learnt from, and the faults for which the others are left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import training
from bloomery.components.core.modelling.preference_pairs import Pair, pair_of
from bloomery.components.dpo.config import DpoConfig


def usable(
    tokenizer: Any, rows: list[dict[str, Any]], config: DpoConfig
) -> tuple[list[tuple[dict[str, Any], Pair]], dict[str, float]]:
    """(the preference/3 rows that can be learnt from, each with its tokens; what is told of the others).

    Told:   too_long (pairs of more than max_length tokens), too_long_fraction, and dropped_<reason>: `too_long`, or why
            `pair_of` has no tokens of it.
    Raises: DataError if there are rows and none can be used, or one is too long and `too_long` is `error`.
    """
    pairs: list[tuple[dict[str, Any], Pair]] = []
    dropped: Counter[str] = Counter()
    num_too_long = 0
    for row in rows:
        pair, reason = pair_of(tokenizer, row, takes_single=config.loss == "kto")
        if pair and pair.length > config.max_length:
            num_too_long += 1
            if config.too_long == "error":
                raise DataError(
                    f"dpo: the pair {row['id']} is {pair.length} tokens long and dpo.max_length is "
                    f"{config.max_length}, with dpo.too_long: error; raise max_length, or set too_long to drop or "
                    "truncate_left"
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
            + ("; answers with a score are what reward_model learns from" if dropped["scored"] else "")
        )
    counts = {"too_long": float(num_too_long), "too_long_fraction": num_too_long / max(1, len(rows))}
    return pairs, counts | {f"dropped_{reason}": float(count) for reason, count in sorted(dropped.items())}


def _shortened(pair: Pair, config: DpoConfig) -> Pair | None:
    """The pair with the end of its prompt that fits, if that is what is wanted and a token of it does."""
    room = config.max_length - max(len(pair.chosen), len(pair.rejected))
    if config.too_long != "truncate_left" or room < 1:
        return None
    return Pair(pair.prompt[-room:], pair.chosen, pair.rejected)
