"""Supervised fine-tuning, which `sft` is and quantisation-aware training is under fake quantisation: the model imitates
the assistant turns of chats."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import templates, training
from bloomery.components.core.modelling.training import TrainingConfig

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token without loss, in torch and in TRL."""


class FineTuningConfig(TrainingConfig):
    """Supervised fine-tuning on chats, with the loss on assistant tokens."""

    num_validations: int = Field(default=8, ge=0)
    """Validation passes over the `validation` split, evenly spread; 0: none."""
    keep: Literal["best", "last"] = "best"
    """`best`: the weights with the lowest validation loss; `last`: those at the end. With few examples exact
    answers can go on improving while the validation loss already rises; measure before choosing `last`."""


def fine_tune(
    config: FineTuningConfig,
    network: Any,
    tokenizer: Any,
    *,
    chats: Path,
    texts: list[str],
    watched: list[list[dict[str, str]]],
    where: str,
) -> tuple[Any, dict[str, float]]:
    """Fine-tune `network` on `chats` (chat/1), read `texts` whole beside them, and watch the loss on `watched` chats.

    `where` is the recipe section of `config`, for messages.
    Returns: the network with its adapter, if any, merged; loss and validation_loss (nats per trained token), chats,
             texts, trained_tokens (assistant and text tokens of one epoch), too_long (chats left out), best_step
             (optimiser steps of the kept weights).
    Raises:  DataError if no chat fits in max_length; DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    set_seed(config.seed)
    rows = [row["messages"] for row in artifact.read_table(chats, "chat/1").to_pylist()]
    fitting = _fitting(tokenizer, rows, config.max_length)
    if not fitting:
        raise DataError(
            f"{where}: none of the {len(rows)} chats fits in {where}.max_length = {config.max_length} tokens; raise it"
        )
    if len(fitting) < len(rows):
        logger.warning(
            "%d of %d chats are longer than %d tokens and left out",
            len(rows) - len(fitting),
            len(rows),
            config.max_length,
        )
    read = _read_whole(tokenizer, texts, config.max_length)
    validation = _fitting(tokenizer, watched, config.max_length)
    evaluations = config.num_validations if validation else 0

    best = _Best() if evaluations and config.keep == "best" else None
    trainer = SFTTrainer(
        model=network,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(fitting + read),
        eval_dataset=Dataset.from_list(validation) if evaluations else None,
        peft_config=training.peft_config(config),
        callbacks=[*training.callbacks(), *([best.callback()] if best else [])],
        args=Arguments(
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="group_by_length",  # chats are short and uneven: padding was 40 % of a batch
            **training.arguments(config, num_rows=len(fitting) + len(read), evaluations=evaluations),
        ),
    )
    trainer.optimizer = training.optimizer(config, trainer.model)
    trainer.train()
    best_step = best.restore(trainer.model) if best else trainer.state.global_step
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    metrics = {
        "loss": training.final_loss(trainer.state.log_history),
        "chats": float(len(fitting)),
        "texts": float(len(read)),
        "too_long": float(len(rows) - len(fitting)),
        "trained_tokens": float(sum(label != IGNORED for row in fitting + read for label in row["labels"])),
        "best_step": float(best_step),
    }
    if losses:
        metrics["validation_loss"] = min(losses) if best else losses[-1]
    return training.merged(trainer.model), metrics


def _fitting(tokenizer: Any, chats: list[list[dict[str, str]]], max_length: int) -> list[dict[str, list[int]]]:
    """Tokens and labels of the chats of at most `max_length` tokens; the loss is on the assistant's alone."""
    encoded = (row for messages in chats for row in templates.trained_rows(tokenizer, messages))
    return [
        {"input_ids": ids, "labels": [token if own else IGNORED for token, own in zip(ids, trained, strict=True)]}
        for ids, trained in encoded
        if len(ids) <= max_length
    ]


def _read_whole(tokenizer: Any, texts: list[str], max_length: int) -> list[dict[str, list[int]]]:
    """Tokens and labels of the texts as continued pre-training reads them, each to its first `max_length` tokens."""
    if not texts:
        return []
    cut = [templates.text_tokens(tokenizer, text, end=True)[:max_length] for text in texts]
    return [{"input_ids": ids, "labels": ids} for ids in cut]


class _Best:
    """Keeps a copy, in memory, of the trainable weights with the lowest validation loss."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.step = 0
        self.weights: dict[str, Any] = {}

    def callback(self) -> Any:
        from transformers import TrainerCallback

        keeper = self

        class Keep(TrainerCallback):
            def on_evaluate(
                self,
                args: Any,
                state: Any,
                control: Any,
                metrics: dict[str, float] | None = None,
                model: Any = None,
                **_: Any,
            ) -> None:
                loss = (metrics or {}).get("eval_loss", math.inf)
                if loss < keeper.loss:
                    keeper.loss, keeper.step = loss, state.global_step
                    keeper.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

        return Keep()

    def restore(self, model: Any) -> int:
        """Put the kept weights back; returns the optimiser step that they come from."""
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        return self.step
