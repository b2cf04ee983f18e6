"""A reward model: what people or verifiers prefer, as a number that an answer is worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import adapters, checkpoints, reward_models, training
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.reward_model.config import RewardModelConfig
from bloomery.components.reward_model.pairs import Pair, usable

logger = logging.getLogger(__name__)


@declare(accelerator="all")
def run(
    config: RewardModelConfig,
    *,
    preferences: Annotated[Path, Reads("preference/2")],
    base_model: Annotated[Path, Reads("model/1")],
    reward_model: Annotated[Path, Writes("reward_model/1")],
) -> dict[str, float]:
    """Put a head of one number on `base_model`, train both to score the chosen answers of `preferences` above the
    rejected ones, and write `reward_model`, whose scores have mean 0 and standard deviation 1 over the held-out
    answers (over the trained ones where none is held out).

    Returns: reward_model/pairs (trained on), /held_out, /too_long, /too_long_fraction, /dropped_<reason> (see
             `pairs.usable`), /loss (nats per pair); and of the held-out pairs /accuracy (share with the chosen answer
             scored higher), /accuracy_by_length (what preferring the longer answer, or the shorter one, would reach)
             and /length_correlation (of the difference of scores with that of lengths in tokens, within pairs).
    Raises:  DataError if no pair is left to learn from; ModelError if transformers has no such head for the
             architecture; DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig as Arguments
    from trl import RewardTrainer

    rows = artifact.read_table(preferences, "preference/2").to_pylist()
    set_seed(config.seed)  # of the new head
    checkpoints.check(base_model, to_train=True)
    network, tokenizer = reward_models.load(base_model, dtype=training.weights_dtype(config, base_model))
    checkpoints.check_template(tokenizer, base_model)
    pairs, told = usable(tokenizer, rows, config)
    held_out = [pair for pair in pairs if pair.is_held_out]
    kept = [pair for pair in pairs if not pair.is_held_out]
    trainer = training.train(
        config,
        (RewardTrainer, Arguments),
        network,
        tokenizer,
        Dataset.from_list([pair.row() for pair in kept]),
        center_rewards_coefficient=config.center or None,
    )
    model = RewardModel(adapters.merged(trainer.model).eval(), tokenizer)
    scores = scores_of(model, held_out or kept)
    flat = [score for pair in scores for score in pair]
    model.mean = sum(flat) / len(flat)
    model.deviation = math.sqrt(sum((score - model.mean) ** 2 for score in flat) / len(flat)) or 1.0
    model.save(reward_model, like=base_model)
    metrics = {
        **{f"reward_model/{name}": value for name, value in told.items()},
        "reward_model/pairs": float(len(kept)),
        "reward_model/held_out": float(len(held_out)),
        "reward_model/loss": training.final_loss(trainer.state.log_history),
    }
    return metrics | (_measured(scores, held_out) if held_out else {})


def scores_of(model: RewardModel, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """(chosen, rejected) raw scores of each pair."""
    raw = model.raw_scores([ids for pair in pairs for ids in (pair.chosen, pair.rejected)])
    return list(zip(raw[::2], raw[1::2], strict=True))


def _measured(scores: Sequence[tuple[float, float]], pairs: Sequence[Pair]) -> dict[str, float]:
    """What is told of the held-out pairs, with a warning where length says as much as the model."""
    margins = [chosen - rejected for chosen, rejected in scores]
    longer = [float(pair.chosen_length - pair.rejected_length) for pair in pairs]
    accuracy = sum(margin > 0 for margin in margins) / len(margins)
    signs = [sum(length > 0 for length in longer), sum(length < 0 for length in longer)]
    ties = len(longer) - sum(signs)
    by_length = (max(signs) + ties / 2) / len(longer)
    correlation = uncentred_correlation(margins, longer)
    if accuracy <= by_length and abs(correlation) > 0.5:
        logger.warning(
            "the reward model knows little but length: it is right on %.0f %% of the held-out pairs, and the length of "
            "the answers alone on %.0f %%; what is trained against it will learn to write %s answers (arXiv "
            "2310.03716). Balance the lengths of the pairs",
            100 * accuracy,
            100 * by_length,
            "longer" if correlation > 0 else "shorter",
        )
    return {
        "reward_model/accuracy": accuracy,
        "reward_model/accuracy_by_length": by_length,
        "reward_model/length_correlation": correlation,
    }


def uncentred_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Σab / √(Σa² Σb²): that of differences within pairs, whose sign depends on which of the two is named first; 0
    where one side is all 0."""
    norm = math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
    return sum(a * b for a, b in zip(left, right, strict=True)) / norm if norm else 0.0
