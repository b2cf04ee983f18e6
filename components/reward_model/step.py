"""A reward model: what people or verifiers prefer, or how they score it, as a number that an answer is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import adapters, checkpoints, reward_models, training
from bloomery.components.core.modelling.preference_pairs import Pair
from bloomery.components.core.modelling.preference_rows import check_readable, dropped, usable_pairs
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.reward_model import measures, scores
from bloomery.components.reward_model.config import RewardModelConfig


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
    deviation 1 over the held-out answers (over the trained ones where none is held out).

    Returns: reward_model/pairs (trained on; of scored answers /answers), /held_out, /too_long, /too_long_fraction,
             /dropped_<reason> (see `pair_of` and `scores.read`), /loss (nats per pair; of scores their squared
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
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig as Arguments
    from trl import RewardTrainer

    rows = artifact.read_table(preferences, "preference/3").to_pylist()
    is_scored = _are_scored(rows)
    set_seed(config.seed)  # of the new head
    checkpoints.check(base_model, to_train=True)
    if config.adapter and config.adapter.kind == "qlora":
        network, tokenizer = reward_models.load(base_model, in_4_bits=True)
    else:
        network, tokenizer = reward_models.load(base_model, dtype=training.weights_dtype(config, base_model))
    checkpoints.check_template(tokenizer, base_model)
    kept, held_out, told = _usable(tokenizer, rows, config, is_scored)
    check_readable(network, tokenizer, (*kept, *held_out), "reward_model")
    kind: type = RewardTrainer
    collator: Any = None
    settings: dict[str, Any] = {"center_rewards_coefficient": config.center or None}
    if is_scored:
        kind, collator = scores.trainer_of(RewardTrainer, tokenizer.pad_token_id)
        settings = {}
    trainer = training.train(
        config,
        (kind, Arguments),
        network,
        tokenizer,
        Dataset.from_list(scores.prepared(kept) if is_scored else _prepared(kept)),
        collator=collator,
        **settings,
    )
    model = RewardModel(adapters.merged(trainer.model).eval(), tokenizer)
    raw = model.raw_scores([ids for one in held_out or kept for ids in one.chats])
    model.mean = sum(raw) / len(raw)
    model.deviation = math.sqrt(sum((score - model.mean) ** 2 for score in raw) / len(raw)) or 1.0
    model.save(reward_model, like=base_model)
    metrics = {
        **told,
        "answers" if is_scored else "pairs": float(len(kept)),
        "held_out": float(len(held_out)),
        "loss": training.final_loss(trainer.state.log_history),
        **(_measured(raw, held_out, is_scored) if held_out else {}),
    }
    return {f"reward_model/{name}": value for name, value in metrics.items()}


def _are_scored(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows are scored answers, and not pairs. Raises: DataError if they are both."""
    num_scored = sum(row["score"] is not None for row in rows)
    if 0 < num_scored < len(rows):
        raise DataError(
            f"reward_model: found {len(rows) - num_scored} pairs and {num_scored} scored answers, and it learns from "
            "one of them; leave the files of the others out of `preferences`"
        )
    return num_scored > 0


def _usable(
    tokenizer: Any, rows: Sequence[dict[str, Any]], config: RewardModelConfig, is_scored: bool
) -> tuple[list[Any], list[Any], dict[str, float]]:
    """(pairs or scored answers to train on, those held out, what is told of the others). Raises: DataError if none is
    left to train on."""
    if is_scored:
        return scores.usable(tokenizer, rows, config)
    kept, held_out, told = usable_pairs(tokenizer, rows, config, "reward_model")
    if not kept:
        raise DataError(
            f"reward_model: of {len(rows)} preference pairs none is left to learn from ({dropped(told)}; "
            f"{len(held_out)} held out); give it pairs of more prompts"
        )
    return kept, held_out, told


def _prepared(pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
    """The rows that TRL's trainer takes."""
    return [dict(zip(("chosen_ids", "rejected_ids"), pair.chats, strict=True)) for pair in pairs]


def _measured(raw: Sequence[float], held_out: Sequence[Any], is_scored: bool) -> dict[str, float]:
    """What is told of the held-out pairs or answers, whose scores are `raw`."""
    if is_scored:
        told = measures.of_scores(raw, held_out)
    else:
        margins = [chosen - rejected for chosen, rejected in zip(raw[::2], raw[1::2], strict=True)]
        told = measures.of_pairs(margins, [float(len(one.chosen) - len(one.rejected)) for one in held_out])
    if told:
        measures.warn(told)
    return told
