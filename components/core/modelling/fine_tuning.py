"""Supervised fine-tuning, which `sft` is and quantisation-aware training is under fake quantisation: the model imitates
the assistant turns of chats."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bloomery.components.core import artifact
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import adapters, batches, likelihood, templates, token_shards, training
from bloomery.components.core.modelling.token_shards import IGNORED, Encoded
from bloomery.components.core.modelling.training import TooLong, TrainingConfig
from bloomery.components.core.parallel import map_ordered

logger = logging.getLogger(__name__)

CHATS_AT_ONCE = 500
"""Chats that a worker turns into tokens at once."""

BEST = "best.pt"
"""In a checkpoint: the weights with the lowest validation loss so far."""

Row = tuple[list[int], list[bool]]
"""Token ids, and which of them have a loss."""


class FineTuningConfig(TrainingConfig):
    """Supervised fine-tuning on chats, with the loss on assistant tokens."""

    num_validations: int = Field(default=8, ge=0)
    """Validation passes over the `validation` split, evenly spread; 0: none."""
    train_on: templates.TrainOn = "all_turns"
    """Assistant turns of a chat that have a loss: all, or the last alone, which the others then lead up to. Marks of
    single turns in a file (`weight`, `train`) are not obeyed: chat_curation refuses chats with a turn that is not to be
    learnt."""
    keep: Literal["best", "last"] = "best"
    """`best`: the weights with the lowest validation loss; `last`: those at the end. With few examples exact
    answers can go on improving while the validation loss already rises; measure before choosing `last`."""
    patience: int | None = Field(default=None, gt=0)
    """Validations in a row without a lower loss after which training ends; none: it goes on to the end."""
    prompt_loss_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the loss on what is not answered: prompts, and turns that are not trained. 0: on answers alone; with
    little data and long prompts some helps (arXiv 2405.14394, which finds it so below 5,000 examples)."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings while training, of this size over the root of a row's numbers; 5 is the paper's for
    fine-tuning on chats (NEFTune, arXiv 2310.05914). None: no noise."""
    packing: bool = False
    """Rows of `max_length` tokens, each of several chats that do not see one another, in place of a row a chat: little
    padding on a GPU, and batches of like size. `batch_size` then counts packed rows."""
    too_long: TooLong = "drop"
    """What becomes of a chat of more than `max_length` tokens: `drop`: it is left out; `truncate_left`: its last
    `max_length` tokens are kept, if one of them has a loss; `error`: the run stops and names the first."""


def fine_tune(
    config: FineTuningConfig,
    network: Any,
    tokenizer: Any,
    *,
    chats: Path,
    texts: list[str],
    watched: list[dict[str, Any]],
    where: str,
    beside: Path | None = None,
) -> tuple[Any, dict[str, float]]:
    """Fine-tune `network` on `chats` (chat/2), read `texts` whole beside them, and watch the loss on `watched` chats.

    `where` is the recipe section of `config`, for messages; `beside` is the folder that an adapter is written to as
    well, in `adapter/`. The chats are tokenised once, to disk, and stand in memory neither as texts nor as tokens.
    Returns: the network with its adapter, if any, merged; loss and validation_loss (nats per trained token), chats,
             texts, trained_tokens (assistant and text tokens of one epoch), too_long (chats of more than max_length
             tokens) and too_long_fraction, without_loss (chats left out because no token of theirs would be trained),
             best_step (optimiser steps of the kept weights).
    Raises:  DataError if no chat fits in max_length, or if one does not and `too_long` is `error`; DivergedError before
             a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    set_seed(config.seed)
    parts = ["chats", artifact.read_manifest(chats).digest, texts, config.max_length, config.too_long, config.train_on]
    cut = functools.partial(_cut, tokenizer, config, where)
    validation = _labelled(row for chat in watched for row in cut({"id": "", **chat})[0])
    evaluations = config.num_validations if validation else 0
    best = _Best(config.patience) if evaluations and (config.keep == "best" or config.patience) else None
    encode = functools.partial(_encoded, tokenizer, chats, texts, config.max_length, cut)
    with token_shards.tokenised(tokenizer, parts, encode) as tokens:
        told = _told(tokens.counts, config, where)
        kind: type = SFTTrainer
        if config.packing or config.prompt_loss_weight:
            kind = batches.with_prompts(kind, config.prompt_loss_weight)
        if config.packing:
            batches.check_packs(network)
            rows = tokens.packed(batches.bins(tokens.lengths, config.max_length))
        else:
            rows = tokens.rows()
            # Chats are short and uneven: padding was 40 % of a batch.
            kind = batches.grouped_by_length(kind, tokens.lengths, config.seed)
        trainer = training.train(
            config,
            (kind, Arguments),
            network,
            tokenizer,
            rows,
            collator=batches.collator(templates.pad_token(tokenizer)),
            validation=Dataset.from_list(validation) if validation else None,
            evaluations=evaluations,
            callbacks=[best.callback()] if best else [],
            keepers=[best] if best else [],
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            neftune_noise_alpha=config.neftune_alpha,
            per_device_eval_batch_size=_rows_at_once(validation),
        )
    takes_best = best is not None and config.keep == "best"
    best_step = best.restore(trainer.model) if best and takes_best else trainer.state.global_step
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    metrics = {"loss": training.final_loss(trainer.state.log_history), **told, "best_step": float(best_step)}
    if losses:
        metrics["validation_loss"] = min(losses) if takes_best else losses[-1]
    return adapters.merged(trainer.model, beside), metrics


def _encoded(tokenizer: Any, chats: Path, texts: list[str], max_length: int, cut: Any) -> Iterator[Encoded]:
    """The rows of all chats, then those of the texts, each to its first `max_length` tokens."""
    batches = (batch.to_pylist() for batch in artifact.Shards(chats, "chat/2").batches(CHATS_AT_ONCE))
    yield from map_ordered(functools.partial(_rows_of_chats, cut), batches)
    for batch in token_shards.in_batches(texts):
        rows = [ids[:max_length] for ids in token_shards.whole_texts(tokenizer, batch)]
        counts = {"texts": len(rows), "trained_tokens": sum(map(len, rows))}
        yield token_shards.encoded([(ids, [True] * len(ids)) for ids in rows], counts)


def _rows_of_chats(cut: Any, chats: list[dict[str, Any]]) -> Encoded:
    """Rows of some chats, with how many chats were read, kept, too long or without a token to train."""
    rows: list[Row] = []
    counts = {"read": len(chats), "chats": 0, "too_long": 0, "without_loss": 0, "trained_tokens": 0}
    for chat in chats:
        kept, too_long, lacks_loss = cut(chat)
        rows += kept
        counts["chats"] += bool(kept)
        counts["too_long"] += too_long
        counts["without_loss"] += lacks_loss
        counts["trained_tokens"] += sum(sum(trained) for _, trained in kept)
    return token_shards.encoded(rows, counts)


def _cut(tokenizer: Any, config: FineTuningConfig, where: str, chat: dict[str, Any]) -> tuple[list[Row], bool, bool]:
    """(rows of at most `max_length` tokens that have something to train, whether one was longer, whether there is none
    because nothing that fits is trained) of a chat/2 row."""
    max_length, too_long = config.max_length, config.too_long
    if not any(turn["role"] == "assistant" for turn in chat["messages"]):
        return [], False, True
    made = templates.trained_rows(tokenizer, chat["messages"], chat["tools"], config.train_on)
    longest = max(len(ids) for ids, _ in made)
    if longest > max_length and too_long == "error":
        raise DataError(
            f"{where}: chat {chat['id']} is {longest} tokens long and {where}.max_length is {max_length}, with "
            f"{where}.too_long: error; raise max_length, or set too_long to drop or truncate_left"
        )
    if too_long == "truncate_left":
        made = [(ids[-max_length:], trained[-max_length:]) for ids, trained in made]
    # The first token has nothing before it that it could be learnt from.
    fitting = [(ids, trained) for ids, trained in made if len(ids) <= max_length]
    kept = [(ids, trained) for ids, trained in fitting if any(trained[1:])]
    return kept, longest > max_length, bool(fitting) and not kept


def _told(counts: dict[str, int], config: FineTuningConfig, where: str) -> dict[str, float]:
    """What is told of the rows, with a warning where many chats are too long; DataError if none is left."""
    if not counts["chats"]:
        raise DataError(
            f"{where}: none of the {counts['read']} chats fits in {where}.max_length = {config.max_length} tokens with "
            f"a token to train ({counts['too_long']} too long, {counts['without_loss']} without one); raise it"
        )
    fraction = counts["too_long"] / counts["read"]
    training.warn_of_too_long(counts["too_long"], counts["read"], "chats", config.max_length, config.too_long)
    names = ("chats", "texts", "too_long", "without_loss", "trained_tokens")
    return {**{name: float(counts[name]) for name in names}, "too_long_fraction": fraction}


def _labelled(rows: Iterator[Row]) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": ids, "labels": [token if own else IGNORED for token, own in zip(ids, trained, strict=True)]}
        for ids, trained in rows
    ]


def _rows_at_once(rows: Sequence[dict[str, list[int]]]) -> int:
    """Rows of a validation batch: 64, or fewer where that would be more tokens than go through the layers at once."""
    longest = max((len(row["input_ids"]) for row in rows), default=1)
    return max(1, min(64, likelihood.BATCH_TOKENS // longest))


class _Best:
    """Keeps a copy, in memory, of the trainable weights with the lowest validation loss."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience or math.inf
        self.loss = math.inf
        self.step = 0
        self.since = 0
        """Validations since the lowest loss."""
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
                keeper.since += 1
                if keeper.since >= keeper.patience and loss >= keeper.loss:
                    logger.info("the validation loss has not fallen %d times: training ends early", keeper.since)
                    control.should_training_stop = True
                if loss < keeper.loss:
                    keeper.since = 0
                    keeper.loss, keeper.step = loss, state.global_step
                    keeper.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

        return Keep()

    def save(self, folder: Path) -> None:
        """Write what is kept into a checkpoint."""
        import torch

        kept = {"loss": self.loss, "step": self.step, "since": self.since, "weights": self.weights}
        torch.save(kept, folder / BEST)

    def load(self, folder: Path) -> None:
        """Take it out of one."""
        import torch

        kept = torch.load(folder / BEST, weights_only=True)
        self.loss, self.step, self.since, self.weights = (kept[key] for key in ("loss", "step", "since", "weights"))

    def restore(self, model: Any) -> int:
        """Put the kept weights back; returns the optimiser step that they come from."""
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        return self.step
