"""Answers with a score: which can be learnt from, and the regression that learns from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import identity
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.core.modelling.preference_pairs import scored_answer_of
from bloomery.components.core.modelling.preference_rows import ROWS_AT_ONCE, Pairs, Usable, divided, dropped
from bloomery.components.core.records import content_id
from bloomery.components.reward_model.config import RewardModelConfig


class Answer(NamedTuple):
    """What a found score is held against."""

    length: int
    """Tokens of the answer."""
    score: float
    asked: str
    """What it answers: equal for equal prompts alone."""


@contextlib.contextmanager
def usable(tokenizer: Any, preferences: Path, config: RewardModelConfig) -> Iterator[Usable]:
    """The scored answers of `preferences`, as `divided` has it, each in the place of a chosen one; why one is none,
    `scored_answer_of` says.

    Raises: as `divided`, and DataError if the scores that are left to learn from are fewer than two or all the same.
    """
    read = partial(scored_answer_of, tokenizer)
    with divided(tokenizer, preferences, read, config, "reward_model", "scored answer") as (kept, held_out, told):
        if len(set(given(preferences, kept))) < 2:
            raise DataError(
                f"reward_model: of {kept.tokens.counts['read']} scored answers no two with different scores are left "
                f"to learn from ({dropped(told)}; {len(held_out)} held out); an answer must fit in "
                f"reward_model.max_length = {config.max_length} tokens with its prompt"
            )
        yield kept, held_out, told


def given(preferences: Path, answers: Pairs) -> list[float]:
    """The scores of some answers of `preferences`."""
    column = artifact.Shards(preferences, "preference/3").column("score")
    return column.to_numpy()[answers.numbers_N].tolist()


def described(preferences: Path, answers: Pairs) -> list[Answer]:
    """What the scores that are found of some answers of `preferences` are held against."""
    wanted = set(answers.numbers_N.tolist())
    asked = []
    number = 0
    for batch in artifact.Shards(preferences, "preference/3").batches(ROWS_AT_ONCE, ["messages", "tools"]):
        for row in batch.to_pylist():
            if number in wanted:
                asked.append(content_id(identity(row["messages"], row["tools"])))
            number += 1
    lengths = answers.lengths_N3[:, 1].tolist()
    return list(map(Answer, lengths, given(preferences, answers), asked))


def prepared(answers: Pairs, scores: Sequence[float]) -> Sequence[dict[str, Any]]:
    """The rows that the trainer takes, with scores of mean 0 and standard deviation 1, so that a rate of learning means
    the same in any unit."""
    from statistics import fmean, pstdev

    mean, deviation = fmean(scores), pstdev(scores)

    def row(at: int) -> dict[str, Any]:
        return {"chosen_ids": answers[at].chats[0], "score": (scores[at] - mean) / deviation}

    return Lazily(row, len(answers))


def trainer_of(trainer: type, pad: int) -> tuple[type, Any]:
    """(TRL's reward `trainer` with the squared error of scores as its loss, as HelpSteer2's reward models learn (arXiv
    2406.08673, section 4); what makes batches of the rows of `prepared`)."""
    import torch

    class Regression(trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
            wanted_B = inputs.pop("score")
            outputs = model(**inputs, use_cache=False)
            loss = torch.nn.functional.mse_loss(outputs.logits[:, 0].float(), wanted_B)
            return (loss, outputs) if return_outputs else loss

    def collated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["chosen_ids"]) for row in rows)
        padding = [width - len(row["chosen_ids"]) for row in rows]
        ids = [[*row["chosen_ids"], *[pad] * more] for row, more in zip(rows, padding, strict=True)]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor([[1] * (width - more) + [0] * more for more in padding]),
            "score": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        }

    return Regression, collated
