"""A reward model: what people or verifiers prefer, or how they score it, as a number that an answer is worth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import adapters, checkpoints, lazy, reward_models, training
from bloomery.components.core.modelling.lazy import Lazily
from bloomery.components.core.modelling.preference_rows import Pairs, Usable, check_readable, dropped, usable_pairs
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.reward_model import measures, scores
from bloomery.components.reward_model.config import RewardModelConfig
from bloomery.components.reward_model.scores import Answer

SCALED_BY = 200
"""Answers by whose scores a model's are scaled, at least, where there are as many: the deviation of n normal numbers
has an error of 1 / sqrt(2 n) of it, 5 % of 200."""


@declare(accelerator="all")
def run(
    config: RewardModelConfig,
    *,
    preferences: Annotated[Path, Reads("preference/3")],
    base_model: Annotated[Path, Reads("model/1")],
    reward_model: Annotated[Path, Writes("reward_model/1")],
) -> dict[str, float]:
    """Put a head of one number on `base_model`, train both to score the chosen answers of `preferences` above the
    rejected ones, or answers as they are scored there, and write `reward_model`, whose scores have mean 0 and standard
    deviation 1 over the held-out answers, and over trained ones beside them where they are fewer than 200.

    Chats are tokenised once, to disk, and stand in memory neither as texts nor as tokens.

    Returns: reward_model/pairs (trained on; of scored answers /answers), /held_out, /too_long, /too_long_fraction,
             /dropped_<reason> (see `pair_of` and `scored_answer_of`), /loss (nats per pair; of scores their squared
             error, in units of their variance); and of what is held out /accuracy (share of pairs with the better
             answer scored higher), /accuracy_by_length (what preferring the longer answer, or the shorter one, would
             reach) and /length_correlation (of the difference of scores with that of lengths in tokens, within pairs;
             of scored answers of score with length). Of scored answers also /spearman and /kendall (rank correlation
             with the given scores), /spearman_by_length (that of length alone), and where some answer one prompt
             /pairs_held_out, from which the accuracies are.
    Raises:  DataError if nothing is left to learn from, or there are pairs and scored answers; ConfigError if a chat is
             longer than the positions that the model knows; ModelError if transformers has no such head for the
             architecture; DivergedError before a non-finite step is taken.
    """
    from transformers import set_seed
    from trl import RewardConfig as Arguments
    from trl import RewardTrainer

    is_scored = _are_scored(preferences)
    set_seed(config.seed)  # of the new head
    checkpoints.check(base_model, to_train=True)
    if config.adapter and config.adapter.kind == "qlora":
        network, tokenizer = reward_models.load(base_model, in_4_bits=True)
    else:
        network, tokenizer = reward_models.load(base_model, dtype=training.weights_dtype(config, base_model))
    checkpoints.check_template(tokenizer, base_model)
    kind = _on_tokens(RewardTrainer)
    collator: Any = None
    settings: dict[str, Any] = {"center_rewards_coefficient": config.center or None}
    if is_scored:
        kind, collator = scores.trainer_of(kind, tokenizer.pad_token_id)
        settings = {}
    with _usable(tokenizer, preferences, config, is_scored) as (kept, held_out, told):
        check_readable(network, tokenizer, (kept, held_out), "reward_model")
        trainer = training.train(
            config,
            (kind, Arguments),
            network,
            tokenizer,
            lazy.dataset(scores.prepared(kept, scores.given(preferences, kept)) if is_scored else _prepared(kept)),
            collator=collator,
            remove_unused_columns=False,
            **settings,
        )
        model = RewardModel(adapters.merged(trainer.model).eval(), tokenizer)
        of_each = 1 if is_scored else 2
        raw = model.raw_scores(_chats(held_out, of_each))
        scaled_by = [*raw, *model.raw_scores(_chats(kept, of_each, most=SCALED_BY - len(raw)))]
        model.mean = sum(scaled_by) / len(scaled_by)
        model.deviation = math.sqrt(sum((score - model.mean) ** 2 for score in scaled_by) / len(scaled_by)) or 1.0
        model.save(reward_model, like=base_model)
        measured = _measured(raw, held_out, scores.described(preferences, held_out) if is_scored else None)
    metrics = {
        **told,
        "answers" if is_scored else "pairs": float(len(kept)),
        "held_out": float(len(held_out)),
        "loss": training.final_loss(trainer.state.log_history),
        **measured,
    }
    return {f"reward_model/{name}": value for name, value in metrics.items()}


def _are_scored(preferences: Path) -> bool:
    """Whether the rows are scored answers, and not pairs. Raises: DataError if they are both."""
    column = artifact.Shards(preferences, "preference/3").column("score")
    if 0 < column.null_count < len(column):
        raise DataError(
            f"reward_model: found {column.null_count} pairs and {len(column) - column.null_count} scored answers, and "
            "it learns from one of them; leave the files of the others out of `preferences`"
        )
    return column.null_count < len(column)


@contextlib.contextmanager
def _usable(tokenizer: Any, preferences: Path, config: RewardModelConfig, is_scored: bool) -> Iterator[Usable]:
    """The pairs or scored answers of `preferences`, as `usable_pairs` has it. Raises: DataError if none is left to
    train on."""
    if is_scored:
        with scores.usable(tokenizer, preferences, config) as found:
            yield found
        return
    with usable_pairs(tokenizer, preferences, config, "reward_model") as (kept, held_out, told):
        if not kept:
            raise DataError(
                f"reward_model: of {kept.tokens.counts['read']} preference pairs none is left to learn from "
                f"({dropped(told)}; {len(held_out)} held out); give it pairs of more prompts"
            )
        yield kept, held_out, told


def _on_tokens(trainer: type) -> type:
    """TRL's reward `trainer` for rows that are tokens already."""

    class OnTokens(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return OnTokens


def _prepared(pairs: Pairs) -> Sequence[dict[str, list[int]]]:
    """The rows that TRL's trainer takes."""
    return Lazily(lambda at: dict(zip(("chosen_ids", "rejected_ids"), pairs[at].chats, strict=True)), len(pairs))


def _chats(pairs: Pairs, count: int, most: float = math.inf) -> Sequence[list[int]]:
    """The first `count` chats of each pair, of scored answers there is one, and `most` in all."""
    return Lazily(lambda at: pairs[at // count].chats[at % count], int(max(0, min(most, count * len(pairs)))))


def _measured(raw: Sequence[float], held_out: Pairs, answers: Sequence[Answer] | None) -> dict[str, float]:
    """What is told of the held-out pairs, or of the held-out scored `answers`, whose scores are `raw`; nothing where
    none is held out."""
    if not held_out:
        return {}
    if answers is not None:
        told = measures.of_scores(raw, answers)
    else:
        margins = [chosen - rejected for chosen, rejected in zip(raw[::2], raw[1::2], strict=True)]
        longer = (held_out.lengths_N3[:, 1] - held_out.lengths_N3[:, 2]).astype(float).tolist()
        told = measures.of_pairs(margins, longer)
    if told:
        measures.warn(told, len(held_out))
    return told
