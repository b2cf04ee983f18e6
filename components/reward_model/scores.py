"""Answers with a score: which can be learnt from, and the regression that learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bloomery.components.core.data.chats import identity, said
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import templates
from bloomery.components.core.modelling.preference_pairs import chat_tokens
from bloomery.components.core.modelling.preference_rows import divided, dropped
from bloomery.components.core.modelling.proof import EndInsideError
from bloomery.components.reward_model.config import RewardModelConfig


@dataclass(frozen=True)
class Answer:
    """Token ids of a chat to the end of its answer, how long the answer is and what it is worth."""

    ids: list[int]
    answer_length: int
    score: float
    asked: str
    """What it answers: equal for equal prompts alone."""

    @property
    def length(self) -> int:
        """Tokens of the chat, which `max_length` bounds."""
        return len(self.ids)

    @property
    def chats(self) -> list[list[int]]:
        """The one chat that is scored, as pairs have two."""
        return [self.ids]

    def shortened(self, max_length: int) -> Answer | None:
        """With the end of its prompt that fits; None if no token of it does."""
        return replace(self, ids=self.ids[-max_length:]) if self.answer_length < max_length else None


def usable(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], config: RewardModelConfig
) -> tuple[list[Answer], list[Answer], dict[str, float]]:
    """The scored answers among `rows`, preference/3, as `divided` has it; why one is none, `read` says.

    Raises: as `divided`, and DataError if the scores that are left to learn from are fewer than two or all the same.
    """
    kept, held_out, told = divided(rows, partial(read, tokenizer), config, "reward_model", "scored answer")
    if len({answer.score for answer in kept}) < 2:
        raise DataError(
            f"reward_model: of {len(rows)} scored answers no two with different scores are left to learn from "
            f"({dropped(told)}; {len(held_out)} held out); an answer must fit in "
            f"reward_model.max_length = {config.max_length} tokens with its prompt"
        )
    return kept, held_out, told


def read(tokenizer: Any, row: Mapping[str, Any]) -> tuple[Answer | None, str]:
    """(the answer of a scored row of preference/3, ""), or (None, why it teaches nothing): `empty` (it is only blanks),
    `end_inside` (it says what ends a turn)."""
    if not any(said(turn).strip() for turn in row["chosen"]):
        return None, "empty"
    try:
        ids = chat_tokens(tokenizer, row["messages"] + row["chosen"], row["tools"])
    except EndInsideError:
        return None, "end_inside"
    asked = len(templates.prompt_tokens(tokenizer, row["messages"], row["tools"]))
    return Answer(ids, len(ids) - asked, row["score"], identity(row["messages"], row["tools"])), ""


def prepared(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The rows that the trainer takes, with scores of mean 0 and standard deviation 1, so that a rate of learning means
    the same in any unit."""
    from statistics import fmean, pstdev

    scores = [answer.score for answer in answers]
    mean, deviation = fmean(scores), pstdev(scores)
    return [{"chosen_ids": answer.ids, "score": (answer.score - mean) / deviation} for answer in answers]


def trainer_of(trainer: type, pad: int) -> tuple[type, Any]:
    """(TRL's reward `trainer` with the squared error of scores as its loss, as HelpSteer2's reward models learn (arXiv
    2406.08673, section 4); what makes batches of the rows of `prepared`)."""
    import torch

    class Regression(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["chosen_ids", "score"]

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
