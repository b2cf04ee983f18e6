"""Answers with a score: which can be learnt from, and the regression that learns from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bloomery.components.core.data.chats import identity, said
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import templates, training
from bloomery.components.core.modelling.preference_pairs import is_held_out
from bloomery.components.core.modelling.reward_models import chat_tokens
from bloomery.components.reward_model.config import RewardModelConfig


@dataclass(frozen=True)
class Answer:
    """Token ids of a chat to the end of its answer, how long the answer is and what it is worth."""

    ids: list[int]
    length: int
    score: float
    asked: str
    """What it answers: equal for equal prompts alone."""
    is_held_out: bool


def usable(
    tokenizer: Any, rows: list[dict[str, Any]], config: RewardModelConfig
) -> tuple[list[Answer], dict[str, float]]:
    """(the scored rows of preference/3 that can be learnt from; what is told of the others).

    Told:   too_long (chats of more than max_length tokens), too_long_fraction, and dropped_<reason>: `empty` (the
            answer is only blanks), `too_long`.
    Raises: DataError if the scores that are left to learn from are fewer than two or all the same, or one chat is too
            long and `too_long` is `error`.
    """
    answers: list[Answer] = []
    dropped: Counter[str] = Counter()
    num_too_long = 0
    for row in rows:
        if not any(said(turn).strip() for turn in row["chosen"]):
            dropped["empty"] += 1
            continue
        ids = chat_tokens(tokenizer, row["messages"] + row["chosen"], row["tools"])
        asked = len(templates.prompt_tokens(tokenizer, row["messages"], row["tools"]))
        length, over = len(ids) - asked, len(ids) - config.max_length
        if over > 0:
            num_too_long += 1
            if config.too_long == "error":
                raise DataError(
                    f"reward_model: the answer {row['id']} is {len(ids)} tokens long with its prompt, and "
                    f"reward_model.max_length is {config.max_length}, with reward_model.too_long: error; raise "
                    "max_length, or set too_long to drop or truncate_left"
                )
            if config.too_long == "drop" or over >= asked:
                dropped["too_long"] += 1
                continue
        named, is_out = identity(row["messages"], row["tools"]), is_held_out(row, config.validation_share)
        answers.append(Answer(ids[max(0, over) :], length, row["score"], named, is_out))
    training.warn_of_too_long(num_too_long, len(rows), "scored answers", config.max_length, config.too_long)
    if len({answer.score for answer in answers if not answer.is_held_out}) < 2:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none left out"
        raise DataError(
            f"reward_model: of {len(rows)} scored answers no two with different scores are left to learn from ({told}; "
            f"{sum(answer.is_held_out for answer in answers)} held out); an answer must fit in "
            f"reward_model.max_length = {config.max_length} tokens with its prompt"
        )
    counts = {"too_long": float(num_too_long), "too_long_fraction": num_too_long / len(rows)}
    return answers, counts | {f"dropped_{reason}": float(count) for reason, count in sorted(dropped.items())}


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
