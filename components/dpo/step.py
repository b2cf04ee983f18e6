"""Preference optimisation: right answers gain on the wrong ones that the model itself gave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.data.chats import identity
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import adapters, checkpoints, training
from bloomery.components.core.modelling.likelihood import log_likelihoods
from bloomery.components.core.modelling.preference_pairs import Pair
from bloomery.components.core.records import content_id
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.pairs import usable

logger = logging.getLogger(__name__)


@declare(accelerator=True)
def run(
    config: DpoConfig,
    *,
    preferences: Annotated[Path, Reads("preference/2")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Optimise `base_model` on `preferences`, with itself as the reference, and write `model`.

    With fewer than two prompts there is nothing to learn from: the model is passed on as it is, with a warning. With an
    adapter the model without it is the reference, which costs no second copy.
    Returns: dpo/pairs (trained on), dpo/held_out, dpo/too_long (pairs of more than max_length tokens),
             dpo/too_long_fraction, dpo/dropped_<reason> (pairs left out before training, see `pairs.usable`); and for
             the held-out pairs, before and after: dpo/margin_before, dpo/margin_after (mean difference of the
             log-likelihoods of chosen and rejected, in nats), dpo/accuracy_before, dpo/accuracy_after (share of pairs
             with a positive difference), dpo/chosen_change (mean change of the chosen log-likelihood, in nats: below
             zero, DPO is pushing down what it should keep).
    Raises:  DataError if there are pairs and all are left out; DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig as Arguments

    rows = artifact.read_table(preferences, "preference/2").to_pylist()
    if not rows:
        return _passed_on(base_model, model, {})
    set_seed(config.seed)
    network, tokenizer = training.load(config, base_model)
    checkpoints.check_template(tokenizer, base_model)
    learnable, told = usable(tokenizer, rows, config)
    held_out = [pair for row, pair in learnable if _is_held_out(row, config)]
    kept = [pair for row, pair in learnable if not _is_held_out(row, config)]
    if not kept:
        return _passed_on(base_model, model, told)
    before = answer_likelihoods(network, held_out)
    losses = {"loss_type": [config.loss], "loss_weights": [1.0]}
    if config.sft_weight:
        losses = {"loss_type": [config.loss, "sft"], "loss_weights": [1.0, config.sft_weight]}
    trainer = training.train(
        config,
        (_trainer(), Arguments),
        network,  # its reference is loaded again from base_model, which the network remembers as its path
        tokenizer,
        Dataset.from_list([pair.row() for pair in kept]),
        beta=config.beta,
        **losses,
    )
    network = adapters.merged(trainer.model).eval()
    after = answer_likelihoods(network, held_out)
    checkpoints.save(model, network, tokenizer, like=base_model)
    metrics = {
        **_named(told),
        "dpo/pairs": float(len(kept)),
        "dpo/held_out": float(len(held_out)),
        "dpo/loss": training.final_loss(trainer.state.log_history),
    }
    if held_out:
        changes = [new[0] - old[0] for new, old in zip(after, before, strict=True)]
        metrics |= {
            "dpo/margin_before": _mean([chosen - rejected for chosen, rejected in before]),
            "dpo/margin_after": _mean([chosen - rejected for chosen, rejected in after]),
            "dpo/accuracy_before": _mean([float(chosen > rejected) for chosen, rejected in before]),
            "dpo/accuracy_after": _mean([float(chosen > rejected) for chosen, rejected in after]),
            "dpo/chosen_change": _mean(changes),
        }
    return metrics


def _passed_on(base_model: Path, model: Path, told: dict[str, float]) -> dict[str, float]:
    logger.warning("no preference pair to learn from: the model is passed on as it is")
    artifact.link_tree(base_model, model)
    return {**_named(told), "dpo/pairs": 0.0}


def _named(told: dict[str, float]) -> dict[str, float]:
    return {f"dpo/{name}": value for name, value in told.items()}


def _is_held_out(row: dict[str, Any], config: DpoConfig) -> bool:
    return int(content_id(identity(row["messages"], row["tools"]))[:8], 16) < config.validation_share * 2**32


def _trainer() -> Any:
    """TRL's trainer for pairs that are tokens already, so that training sees those of every other step."""
    from trl import DPOTrainer

    class OnTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return OnTokens


def answer_likelihoods(network: Any, pairs: list[Pair]) -> list[tuple[float, float]]:
    """(chosen, rejected) log-likelihoods in nats of the answers, their ends included, given the prompts."""
    answers = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    marks = [[False] * len(prompt) + [True] * len(answer) for prompt, answer in answers]
    nats = [total for total, _ in log_likelihoods(network, [prompt + answer for prompt, answer in answers], marks)]
    return list(zip(nats[::2], nats[1::2], strict=True))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
