"""Preference optimisation: right answers gain on the wrong ones that the model itself gave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import adapters, checkpoints, lazy, training
from bloomery.components.core.modelling.preference_rows import check_readable, usable_pairs
from bloomery.components.dpo import losses, measures
from bloomery.components.dpo.config import DpoConfig

logger = logging.getLogger(__name__)


@declare(accelerator="all")
def run(
    config: DpoConfig,
    *,
    preferences: Annotated[Path, Reads("preference/3")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Optimise `base_model` on `preferences`, with itself as the reference, and write `model`.

    With fewer than two prompts there is nothing to learn from: the model is passed on as it is, with a warning. The
    pairs are tokenised once, to disk, and stand in memory neither as texts nor as tokens. The reference is read once,
    before the first step, and takes no second copy of the weights; what was found of it outlives a kill.
    Returns: dpo/pairs (trained on), dpo/held_out, dpo/trained_tokens (of the answers of one epoch),
             dpo/too_long (pairs of more than max_length tokens),
             dpo/too_long_fraction, dpo/dropped_<reason> (pairs left out before training, see `pair_of`), dpo/loss
             (in the unit of the loss); and of the held-out pairs what `measures.compared` tells: dpo/chosen_before,
             dpo/chosen_after, dpo/rejected_before, dpo/rejected_after, dpo/margin_before, dpo/margin_after,
             dpo/accuracy_before, dpo/accuracy_after, dpo/chosen_change (below zero, training is pushing down what it
             should keep), dpo/chosen_change_per_token, dpo/kl, dpo/length_correlation.
    Raises:  DataError if there are pairs and all are left out, or `loss` is `kto` and good or bad answers are lacking;
             ConfigError if a pair is longer than the positions that the model knows; DivergedError before a non-finite
             step is taken.
    """
    from transformers import set_seed

    if not artifact.read_manifest(preferences, "preference/3").rows:
        return _passed_on(base_model, model, {})
    set_seed(config.seed)
    network, tokenizer = training.load(config, base_model)
    checkpoints.check_template(tokenizer, base_model)
    with usable_pairs(tokenizer, preferences, config, "dpo") as (kept, held_out, told):
        check_readable(network, tokenizer, (kept, held_out), "dpo")
        if not kept:
            return _passed_on(base_model, model, {**told, "held_out": float(len(held_out))})
        before = measures.answer_likelihoods(network, held_out, "held_out")
        kind, prepared, settings = losses.prepared(config, network, kept)
        trainer = training.train(
            config,
            kind,
            network,
            tokenizer,
            lazy.dataset(prepared),
            callbacks=[measures.alarm(config)],
            **settings,
        )
        network = adapters.merged(trainer.model, model).eval()
        changed = measures.compared(held_out, before, measures.answer_likelihoods(network, held_out))
    measures.warn(config, changed)
    checkpoints.save(model, network, tokenizer, like=base_model)
    first = [name for name in ("accuracy_before", "accuracy_after") if name in changed]
    return {
        "dpo/pairs": float(len(kept)),
        **_named({name: changed[name] for name in first}),  # which the line of progress tells
        "dpo/held_out": float(len(held_out)),
        "dpo/trained_tokens": float(kept.lengths_N3[:, 1:].sum()),
        "dpo/loss": training.final_loss(trainer.state.log_history),
        **_named(changed),
        **_named(told),
    }


def _passed_on(base_model: Path, model: Path, told: dict[str, float]) -> dict[str, float]:
    held_out = f" ({told['held_out']:.0f} are held out by dpo.validation_share)" if told.get("held_out") else ""
    logger.warning("no preference pair to learn from%s: the model is passed on as it is", held_out)
    artifact.link_tree(base_model, model)
    return {**_named(told), "dpo/pairs": 0.0}


def _named(told: dict[str, float]) -> dict[str, float]:
    return {f"dpo/{name}": value for name, value in told.items()}
