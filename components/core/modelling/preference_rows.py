"""Rows of preference/3 as trainings take them: which fit, which are held out, and why the others are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from pydantic import Field

from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import context, training
from bloomery.components.core.modelling.preference_pairs import Pair, is_held_out, pair_of
from bloomery.components.core.modelling.training import TooLong, TrainingConfig


class PreferenceConfig(TrainingConfig):
    """Settings of a training on preferences."""

    too_long: TooLong = "drop"
    """What becomes of a pair of which an answer, with the prompt, is longer than `max_length` tokens, or of such a
    scored answer: `drop`: it is left out; `truncate_left`: its prompt loses its beginning, as far as one token of it is
    left; `error`: the run stops and names the first."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs, or scored answers, kept out of training, by prompt, for what is told of it."""


    @property
    def takes(self) -> frozenset[PairKind]:
        """The kinds of rows that are learnt from."""
        return frozenset({"pair"})


class Fitting(Protocol):
    """The tokens of a row."""

    @property
    def length(self) -> int:
        """Tokens of the longest chat, which `max_length` bounds."""

    @property
    def chats(self) -> list[list[int]]:
        """The token ids of its chats."""

    def shortened(self, max_length: int) -> Self | None:
        """Without as much of the beginning of its prompt as is too long; None if no token of it would be left."""


FittingT = TypeVar("FittingT", bound=Fitting)


def divided(
    rows: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], tuple[FittingT | None, str]],
    config: PreferenceConfig,
    where: str,
    called: str,
) -> tuple[list[FittingT], list[FittingT], dict[str, float]]:
    """(those of `rows` to train on, those held out, what is told of the others), each as `read` makes it; or it says
    why it makes nothing of a row.

    `where` is the section of the recipe and `called` what a row is called, for messages.
    Told:   too_long (rows of more than max_length tokens), too_long_fraction, and dropped_<reason>: `too_long`, or what
            `read` says.
    Raises: DataError if a row is too long and `too_long` is `error`.
    """
    kept: list[FittingT] = []
    held_out: list[FittingT] = []
    dropped: Counter[str] = Counter()
    num_too_long = 0
    for row in rows:
        one, reason = read(row)
        if one and one.length > config.max_length:
            num_too_long += 1
            if config.too_long == "error":
                raise DataError(
                    f"{where}: the {called} {row['id']} is {one.length} tokens long with its prompt and "
                    f"{where}.max_length is {config.max_length}, with {where}.too_long: error; raise max_length, or "
                    "set too_long to drop or truncate_left"
                )
            one = one.shortened(config.max_length) if config.too_long == "truncate_left" else None
            reason = "too_long"
        if one:
            (held_out if is_held_out(row, config.validation_share) else kept).append(one)
        else:
            dropped[reason] += 1
    training.warn_of_too_long(num_too_long, len(rows), f"{called}s", config.max_length, config.too_long)
    counts = {"too_long": float(num_too_long), "too_long_fraction": num_too_long / max(1, len(rows))}
    return kept, held_out, counts | {f"dropped_{reason}": float(count) for reason, count in sorted(dropped.items())}


def usable_pairs(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: PreferenceConfig,
    where: str,
) -> tuple[list[Pair], list[Pair], dict[str, float]]:
    """The pairs among `rows`, as `divided` has it; why one is none, `pair_of` says.

    Raises: as `divided`, and DataError if there are rows and none can be used.
    """
    read = partial(pair_of, tokenizer, takes_single="label" in config.takes)
    kept, held_out, told = divided(rows, read, config, where, "preference pair")
    if rows and not kept and not held_out:
        raise DataError(
            f"{where}: none of the {len(rows)} preference pairs can be learnt from: {dropped(told)}; a pair needs two "
            f"answers that differ and fit in {where}.max_length = {config.max_length} tokens with their prompt"
            + ("; single answers with a label take dpo.loss: kto" if "dropped_unpaired" in told else "")
            + ("; answers with a score are what reward_model learns from" if "dropped_scored" in told else "")
        )
    return kept, held_out, told


def check_readable(network: Any, tokenizer: Any, rows: Sequence[Fitting], where: str) -> None:
    """Raise, as `context` does, if `network` has not the positions or not the embeddings of some rows."""
    context.check_positions(network.config, max(row.length for row in rows), where)
    context.check_embedded(network.config, tokenizer, lambda: max(max(ids) for row in rows for ids in row.chats), where)


def dropped(told: Mapping[str, float]) -> str:
    """How many rows were left out for each reason, in words."""
    found = {name.removeprefix("dropped_"): count for name, count in told.items() if name.startswith("dropped_")}
    return ", ".join(f"{count:.0f} {reason}" for reason, count in found.items()) or "none left out"
