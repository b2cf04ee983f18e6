"""Supervised fine-tuning: the model imitates the assistant turns of chats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling import checkpoints, training
from bloomery.components.core.modelling.fine_tuning import fine_tune
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.core.scoring.validation import scorer
from bloomery.components.sft.config import SftConfig


@declare(accelerator="all")
def run(
    config: SftConfig,
    *,
    chats: Annotated[Path, Reads("chat/2")],
    tasks: Annotated[Path, Reads("tasks/1")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Fine-tune `base_model` on `chats`, watch the loss on the `validation` split of `tasks`, write `model`.

    The `train` rows of the perplexity tasks are read whole beside the chats. An adapter is merged into the weights, and
    written to `adapter/` beside them as well.

    Returns: sft/loss and sft/validation_loss (nats per trained token), sft/chats, sft/texts, sft/trained_tokens
             (assistant and text tokens of one epoch), sft/too_long (chats of more than max_length tokens),
             sft/too_long_fraction, sft/without_loss (chats without a token to train), sft/end_inside (chats that say
             what ends a turn), sft/best_step (optimiser steps of the kept weights), sft/replay_fraction (of the
             characters read); with `replay_share` sft/not_replayed (exercises and texts left out), with `tasks`
             sft/other_tasks (chats left out), with `mixing` sft/share_<task> (part of the chats of an epoch) and
             sft/unseen (rows in no epoch), with `best_by: score` sft/validation_score and sft/scoring_seconds.
    Raises:  DataError if no chat fits in max_length, or one does not and `too_long` is `error`; ModelError if the chat
             template trains nothing or does not end a turn; DivergedError before a non-finite step is taken.
    """
    network, tokenizer = training.load(config, base_model)
    checkpoints.check_template(tokenizer, base_model)
    known = Tasks(tasks)
    known.check_named(config.tasks, "sft.tasks")
    network, metrics = fine_tune(
        config,
        network,
        tokenizer,
        chats=chats,
        texts=known.texts_to_read(config.tasks, is_general=False),
        replayed=known.texts_to_read(config.tasks, is_general=True),
        watched=known.validation_chats(config.tasks),
        where="sft",
        beside=model,
        score=scorer(known, tokenizer, config.tasks, config.best_questions, "sft"),
    )
    checkpoints.save(model, network, tokenizer, like=base_model)
    return {f"sft/{name}": value for name, value in metrics.items()}
