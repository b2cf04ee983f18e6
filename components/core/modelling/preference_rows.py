"""Rows of preference/3 as trainings take them: which fit, which are held out, and why the others are left out. They are
read some at a time, tokenised once over the cores, and read from disk as they are needed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bloomery.components.core import artifact
from bloomery.components.core.data import chats
from bloomery.components.core.data.chat_forms import PairKind
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import context, preference_pairs, token_shards, training
from bloomery.components.core.modelling.preference_pairs import Pair, is_held_out, pair_of
from bloomery.components.core.modelling.token_shards import Encoded, Tokens
from bloomery.components.core.modelling.training import TooLong, TrainingConfig
from bloomery.components.core.parallel import map_ordered

if TYPE_CHECKING:
    import numpy as np

ROWS_AT_ONCE = 200
"""Rows that a worker turns into tokens at once."""
TRAINED, HELD_OUT, LEFT_OUT = range(3)
"""What becomes of a row."""


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


class Pairs(Sequence[Pair]):
    """The pairs of a folder of token ids that are trained, or held out, each read from disk when it is asked for.

    Each row of preference/3 has three rows there, its prompt and its two answers; of one that is left out they are
    empty.
    """

    def __init__(self, tokens: Tokens, fate: int) -> None:
        import numpy as np

        self.tokens = tokens
        self.numbers_N: np.ndarray = np.flatnonzero(tokens.groups[::3] == fate)
        """Which rows of preference/3 they are."""
        self.lengths_N3: np.ndarray = tokens.lengths.reshape(-1, 3)[self.numbers_N]
        """Tokens of the prompt, the chosen answer and the rejected one."""

    def __len__(self) -> int:
        return len(self.numbers_N)

    def __getitem__(self, at: Any) -> Any:
        first = 3 * int(self.numbers_N[at])
        return Pair(*(self.tokens.row(first + part) for part in range(3)))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longer answer; 0 of none."""
        return int((self.lengths_N3[:, 0] + self.lengths_N3[:, 1:].max(1)).max()) if len(self) else 0


Usable = tuple[Pairs, Pairs, dict[str, float]]
"""(what is trained on, what is held out, what is told of the rows that are neither)."""
Read = Callable[[Mapping[str, Any]], tuple[Pair | None, str]]
"""What makes tokens of a row, or says why it teaches nothing."""


@contextlib.contextmanager
def divided(
    tokenizer: Any, preferences: Path, read: Read, config: PreferenceConfig, where: str, called: str
) -> Iterator[Usable]:
    """The rows of `preferences` as `read` makes them, on disk while the context lasts.

    `where` is the section of the recipe and `called` what a row is called, for messages; what `read` is follows from
    `called` and from `config`.
    Told:   too_long (rows of more than max_length tokens), too_long_fraction, and dropped_<reason>: `too_long`, or what
            `read` says.
    Raises: DataError if a row is too long and `too_long` is `error`.
    """
    parts = [called, artifact.read_manifest(preferences).digest, config.max_length, config.too_long]
    parts += [config.validation_share, sorted(config.takes)]
    parts += [artifact.file_digest(Path(module)) for module in (__file__, preference_pairs.__file__, chats.__file__)]
    encode = partial(_encoded, preferences, read, config, where, called)
    with token_shards.tokenised(tokenizer, parts, encode) as tokens:
        counts = tokens.counts
        too_long, num_rows = counts["too_long"], counts["read"]
        training.warn_of_too_long(too_long, num_rows, f"{called}s", config.max_length, config.too_long)
        told = {"too_long": float(too_long), "too_long_fraction": too_long / max(1, num_rows)}
        reasons = sorted(name for name in counts if name.startswith("dropped_"))
        yield Pairs(tokens, TRAINED), Pairs(tokens, HELD_OUT), told | {name: float(counts[name]) for name in reasons}


def _encoded(preferences: Path, read: Read, config: PreferenceConfig, where: str, called: str) -> Iterator[Encoded]:
    batches = artifact.Shards(preferences, "preference/3").batches(ROWS_AT_ONCE)
    made = partial(_made, read, config, where, called)
    yield from map_ordered(made, (batch.to_pylist() for batch in batches))


def _made(read: Read, config: PreferenceConfig, where: str, called: str, rows: Sequence[Mapping[str, Any]]) -> Encoded:
    """The tokens of some rows, three rows of them each, and what is counted of them."""
    parts: list[list[int]] = []
    fates: list[int] = []
    counts = Counter(read=len(rows))
    for row in rows:
        one, reason = read(row)
        if one and one.length > config.max_length:
            counts["too_long"] += 1
            if config.too_long == "error":
                raise DataError(
                    f"{where}: the {called} {row['id']} is {one.length} tokens long with its prompt and "
                    f"{where}.max_length is {config.max_length}, with {where}.too_long: error; raise max_length, or "
                    "set too_long to drop or truncate_left"
                )
            one = one.shortened(config.max_length) if config.too_long == "truncate_left" else None
            reason = "too_long"
        fate = LEFT_OUT
        if one:
            fate = HELD_OUT if is_held_out(row, config.validation_share) else TRAINED
        else:
            counts[f"dropped_{reason}"] += 1
        parts += [one.prompt, one.chosen, one.rejected] if one else [[], [], []]
        fates += [fate] * 3
    return token_shards.encoded([(ids, None) for ids in parts], counts, fates)


@contextlib.contextmanager
def usable_pairs(tokenizer: Any, preferences: Path, config: PreferenceConfig, where: str) -> Iterator[Usable]:
    """The pairs among the rows of `preferences`, as `divided` has it; why one is none, `pair_of` says.

    Raises: as `divided`, and DataError if there are rows and none can be used.
    """
    read = partial(pair_of, tokenizer, takes_single="label" in config.takes)
    with divided(tokenizer, preferences, read, config, where, "preference pair") as (kept, held_out, told):
        num_rows = kept.tokens.counts["read"]
        if num_rows and not kept and not held_out:
            raise DataError(
                f"{where}: none of the {num_rows} preference pairs can be learnt from: {dropped(told)}; a pair needs "
                f"two answers that differ and fit in {where}.max_length = {config.max_length} tokens with their prompt"
                + ("; single answers with a label take dpo.loss: kto" if "dropped_unpaired" in told else "")
                + ("; answers with a score are what reward_model learns from" if "dropped_scored" in told else "")
            )
        yield kept, held_out, told


def check_readable(network: Any, tokenizer: Any, pairs: Sequence[Pairs], where: str) -> None:
    """Raise, as `context` does, if `network` has not the positions or not the embeddings of some of `pairs`, which lie
    in one folder."""
    context.check_positions(network.config, max(some.longest for some in pairs), where)
    context.check_embedded(network.config, tokenizer, pairs[0].tokens.highest, where)


def dropped(told: Mapping[str, float]) -> str:
    """How many rows were left out for each reason, in words."""
    found = {name.removeprefix("dropped_"): count for name, count in told.items() if name.startswith("dropped_")}
    return ", ".join(f"{count:.0f} {reason}" for reason, count in found.items()) or "none left out"
