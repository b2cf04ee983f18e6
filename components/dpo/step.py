"""Preference optimisation: right answers gain on the wrong ones that the model itself gave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.data.chats import for_template, identity
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import checkpoints, training
from bloomery.components.core.records import content_id
from bloomery.components.dpo.config import DpoConfig

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

    With fewer than two prompts there is nothing to learn from: the model is passed on as it is, with a warning.
    Returns: dpo/pairs; and for the held-out pairs, before and after: dpo/margin_before, dpo/margin_after (mean
             difference of
             the log-likelihoods of chosen and rejected, in nats), dpo/accuracy_before, dpo/accuracy_after (share
             of pairs with a positive difference), dpo/chosen_change (mean change of the chosen log-likelihood, in
             nats: below zero, DPO is pushing down what it should keep).
    Raises:  DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig as Arguments
    from trl import DPOTrainer

    rows = artifact.read_table(preferences, "preference/2").to_pylist()
    keys = [content_id(identity(row["messages"], row["tools"])) for row in rows]
    places = [int(key[:8], 16) / 2**32 for key in keys]
    held_out = [row for row, place in zip(rows, places, strict=True) if place < config.validation_share]
    kept = [row for row, place in zip(rows, places, strict=True) if place >= config.validation_share]
    if not kept:
        logger.warning("%d preference pairs: nothing to learn from, the model is passed on as it is", len(rows))
        artifact.link_tree(base_model, model)
        return {"dpo/pairs": 0.0}

    set_seed(config.seed)
    network, tokenizer = checkpoints.load(base_model)
    checkpoints.check_template(tokenizer, base_model)
    before = log_likelihoods(network, tokenizer, held_out)
    losses = {"loss_type": [config.loss], "loss_weights": [1.0]}
    if config.sft_weight:
        losses = {"loss_type": [config.loss, "sft"], "loss_weights": [1.0, config.sft_weight]}
    trainer = DPOTrainer(
        model=network,  # its reference is loaded again from base_model, which the network remembers as its path
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([_conversation(row) for row in kept]),
        peft_config=training.peft_config(config),
        callbacks=training.callbacks(),
        args=Arguments(beta=config.beta, **losses, **training.arguments(config, num_rows=len(kept), evaluations=0)),
    )
    trainer.optimizer = training.optimizer(config, trainer.model)
    trainer.train()
    network = training.merged(trainer.model).eval()
    after = log_likelihoods(network, tokenizer, held_out)
    checkpoints.save(model, network, tokenizer)
    metrics = {"dpo/pairs": float(len(kept)), "dpo/loss": training.final_loss(trainer.state.log_history)}
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


def log_likelihoods(network: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(chosen, rejected) log-likelihoods in nats of the assistant turn, EOS included, given the prompt."""
    import torch

    totals: list[float] = []
    texts = [for_template(row["messages"] + row[side]) for row in pairs for side in ("chosen", "rejected")]
    for start in range(0, len(texts), 64):
        encoded = tokenizer.apply_chat_template(
            texts[start : start + 64],
            return_dict=True,
            return_assistant_tokens_mask=True,
            padding=True,
            return_tensors="pt",
            tokenizer_kwargs={"padding_side": "right"},
        ).to(network.device)
        ids_BL, trained_BL = encoded["input_ids"], encoded["assistant_masks"]
        with torch.inference_mode():
            logits_BLV = network(input_ids=ids_BL, attention_mask=encoded["attention_mask"]).logits[:, :-1].float()
        nats_BL = torch.log_softmax(logits_BLV, -1).gather(-1, ids_BL[:, 1:, None])[..., 0]
        totals += (nats_BL * trained_BL[:, 1:]).sum(-1).tolist()
    return list(zip(totals[::2], totals[1::2], strict=True))


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    sides = {"prompt": "messages", "chosen": "chosen", "rejected": "rejected"}
    return {side: for_template(row[field]) for side, field in sides.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
