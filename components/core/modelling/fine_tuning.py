"""Supervised fine-tuning, which `sft` is and quantisation-aware training is under fake quantisation: the model imitates
the assistant turns of chats."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import CORRECTED
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import (
    adapters,
    batches,
    context,
    likelihood,
    replay,
    templates,
    token_shards,
    training,
)
from bloomery.components.core.modelling.best import Best
from bloomery.components.core.modelling.mixtures import ALWAYS, MixingConfig, Mixture
from bloomery.components.core.modelling.proof import EndInsideError
from bloomery.components.core.modelling.replay import Allowance, ReplayConfig
from bloomery.components.core.modelling.resuming import Keeper
from bloomery.components.core.modelling.token_shards import IGNORED, Encoded
from bloomery.components.core.modelling.training import TooLong, check_whole
from bloomery.components.core.parallel import map_ordered

logger = logging.getLogger(__name__)

CHATS_AT_ONCE = 500
"""Chats that a worker turns into tokens at once."""

REASONS = ("other_tasks", "too_long", "without_loss", "end_inside")
"""Why a chat, or a row of it, is not trained."""
Row = tuple[list[int], list[bool]]
"""Token ids, and which of them have a loss."""


class FineTuningConfig(ReplayConfig):
    """Supervised fine-tuning on chats, with the loss on assistant tokens."""

    num_validations: int = Field(default=8, ge=0)
    """Validation passes over the `validation` split, evenly spread; 0: none."""
    train_on: templates.TrainOn = "all_turns"
    """Assistant turns of a chat that have a loss: all, or the last alone, which the others then lead up to. Marks of
    single turns in a file (`weight`, `train`) are not obeyed: chat_curation refuses chats with a turn that is not to be
    learnt."""
    train_reasoning: bool = True
    """Whether what is thought before an answer has a loss, as in s1 (arXiv 2501.19393), which trains on traces and
    solutions. false: the thoughts stay where they are, to answer from, and the loss is on the answers alone; it is
    proven of every turn that what has a loss is its content."""
    tasks: list[str] = []
    """Tasks whose chats, texts and validation questions are learnt and watched, where a stage is to learn some alone:
    several stages, each with its own, are one after the other. Other chats are counted as `other_tasks`. Empty: all,
    and the chats of no task."""
    mixing: MixingConfig | None = None
    """Draw the tasks of the chats by a temperature, such as `{temperature: 2}`; none: every chat once an epoch. With a
    `replay_share` every epoch takes all exercises, and the others are drawn."""
    keep: Literal["best", "last"] = "best"
    """`best`: the best weights of all validations; `last`: those at the end."""
    best_by: Literal["validation_loss", "score"] = "validation_loss"
    """Which weights are best: those with the lowest validation loss, or those whose greedy answers to validation
    questions score highest (of equal ones those with the lower loss). With few examples exact answers can go on
    improving while the loss already rises. A score costs `best_questions` answers at each validation."""
    best_questions: int = Field(default=64, gt=0)
    """Validation questions that are answered for a score, the first by id, which are content hashes; of 64 a score has
    a standard error of 6 points at most."""
    patience: int | None = Field(default=None, gt=0)
    """Validations in a row without a better one after which training ends; none: it goes on to the end."""
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

    @property
    def needed_validation(self) -> str:
        """What it cannot do without of the `validation` splits: `questions`, `rows` (of any kind), or nothing."""
        return "questions" if self.best_by == "score" else ""

    @model_validator(mode="after")
    def _fits_together(self) -> FineTuningConfig:
        if self.mixing and self.packing:
            raise ValueError("mixing: each epoch takes other rows, and packed rows stay what they are; leave one out")
        if self.best_by == "score" and not (self.num_validations and self.keep == "best"):
            raise ValueError("best_by: score needs validations, and keep: best; set num_validations and keep")
        if self.patience and not self.num_validations:
            raise ValueError(
                f"patience: found {self.patience}, which counts validations, and num_validations is 0; set "
                "num_validations, or leave patience out"
            )
        if self.adapter and self.adapter.is_soft:
            if self.prompt_loss_weight:
                raise ValueError(
                    f"prompt_loss_weight: found {self.prompt_loss_weight:g}, and the tokens of adapter.kind "
                    f"{self.adapter.kind} are a part of the prompt that nothing says; set it to 0"
                )
            check_whole(self.too_long, self.adapter.kind)
        return self


def fine_tune(
    config: FineTuningConfig,
    network: Any,
    tokenizer: Any,
    *,
    chats: Path,
    texts: Sequence[str],
    watched: list[dict[str, Any]],
    where: str,
    replayed: Sequence[str] = (),
    taught: Callable[[type], type] | None = None,
    keepers: Sequence[Keeper] = (),
    beside: Path | None = None,
    score: Callable[[Any], float] | None = None,
) -> tuple[Any, dict[str, float]]:
    """Fine-tune `network` on `chats` (chat/2), read `texts` whole beside them, and watch the loss on `watched` chats.

    Texts to be `replayed` are read too, as many as `replay_share` lets. `where` is the recipe section of `config`, for
    messages. The chats are tokenised once, to disk, and stand in memory neither as texts nor as tokens. `taught` makes
    of the trainer class, which `batches.with_prompts` has made, one with another loss; `keepers` have state of its own,
    which a checkpoint holds. `beside` is the folder that an adapter is written to as well, in `adapter/`; `score` tells
    what a model's answers are worth, for `best_by`.
    Returns: the network with its adapter, if any, merged; loss and validation_loss (nats per trained token), chats,
             texts, trained_tokens (assistant and text tokens of one epoch), too_long (chats of more than max_length
             tokens) and too_long_fraction, without_loss (chats left out because no token of theirs would be trained),
             end_inside (chats left out because the assistant says what ends a turn), replay_fraction (of the characters
             that are read), best_step (optimiser steps of the kept weights); with `replay_share` not_replayed
             (exercises and texts left out), with `tasks` other_tasks (chats left out), with `mixing` share_<task>
             (part of the chats of an epoch) and unseen (rows that no epoch takes), with `best_by: score`
             validation_score and scoring_seconds.
    Raises:  DataError if no chat fits in max_length, or if one does not and `too_long` is `error`; ConfigError if one
             is longer than the positions that the model knows; DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    set_seed(config.seed)
    if (texts or replayed) and config.adapter and config.adapter.is_soft:
        logger.info("%d texts are left out: no token of a soft prompt stands in them", len(texts) + len(replayed))
        texts = replayed = []
    parts = ["chats", artifact.read_manifest(chats).digest, texts, replayed, config.max_length, config.too_long]
    parts += [config.train_on, config.train_reasoning, config.tasks, config.replay_share, config.replay_exercises]
    parts += [artifact.file_digest(Path(__file__))]
    cut = functools.partial(_cut, tokenizer, config, where)
    validation = labelled_rows(config, tokenizer, watched, where)
    evaluations = config.num_validations if validation else 0
    is_scored = config.best_by == "score"
    if is_scored and not (evaluations and score):
        raise DataError(f"{where}.best_by: score, and no task has validation questions; add a `validation` split")
    needs_best = evaluations and (config.keep == "best" or config.patience)
    takes_best = config.keep == "best"
    best = Best(config.patience, score if is_scored else None, is_taken=takes_best) if needs_best else None
    names = _tasks_of(chats, config.tasks, where)
    encode = functools.partial(_encoded, tokenizer, chats, (texts, replayed), config, names, cut)
    with token_shards.tokenised(tokenizer, parts, encode) as tokens:
        told = _told(tokens.counts, config, where)
        longest = max([int(tokens.lengths.max()), *(len(row["input_ids"]) for row in validation)])
        context.check_positions(network.config, longest, where)
        context.check_embedded(network.config, tokenizer, tokens.highest, where)
        kind: type = SFTTrainer
        if config.packing or config.prompt_loss_weight or taught:
            kind = batches.with_prompts(kind, config.prompt_loss_weight)
        if taught:
            kind = taught(kind)
        if config.packing:
            batches.check_packs(network)
            rows = tokens.packed(batches.bins(tokens.lengths, config.max_length, config.seed))
        else:
            rows = tokens.rows()
            mixture = Mixture(tokens.groups, config.mixing, config.seed) if config.mixing else None
            if mixture:
                told |= _mixed(mixture, names, config)
            # Chats are short and uneven: padding was 40 % of a batch.
            chosen = mixture.epoch if mixture else None
            kind = batches.grouped_by_length(kind, tokens.lengths, config.seed, chosen)
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
            keepers=[*keepers, *([best] if best else [])],
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            neftune_noise_alpha=config.neftune_alpha,
            per_device_eval_batch_size=rows_at_once(validation),
        )
    best_step = best.kept.step if best and takes_best else trainer.state.global_step
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    metrics = {"loss": training.final_loss(trainer.state.log_history), **told, "best_step": float(best_step)}
    if losses:
        metrics["validation_loss"] = best.kept.loss if best and takes_best else losses[-1]
    if best and is_scored:
        metrics |= {"validation_score": best.kept.score, "scoring_seconds": round(best.seconds, 1)}
    return adapters.merged(trainer.model, beside), metrics


def _tasks_of(chats: Path, wanted: Sequence[str], where: str) -> list[str]:
    """The tasks of the chats, in order, each a group of rows by its place. Raises: DataError if some are wanted and no
    chat is of any."""
    found = sorted(artifact.Shards(chats, "chat/2").column("task").unique().to_pylist())
    if wanted and not set(wanted) & set(found):
        known = ", ".join(name or "(no task)" for name in found)
        raise DataError(f"{where}.tasks: no chat is of {', '.join(wanted)}; the chats are of {known}")
    return found


def _mixed(mixture: Mixture, names: Sequence[str], config: FineTuningConfig) -> dict[str, float]:
    """What is told of a mixture: the part of each task, and the rows that it leaves out."""
    total, unseen = sum(mixture.sizes.values()), mixture.unseen(config.epochs)
    told = {names[group] or "no_task": size / total for group, size in mixture.sizes.items()}
    listed = ", ".join(f"{100 * part:.1f} % {name}" for name, part in told.items())
    logger.info("an epoch of %d rows: %s", total, listed)
    if unseen:
        logger.info("%d rows are in no epoch: their tasks get fewer than they have; more epochs read them", unseen)
    return {**{f"share_{name}": part for name, part in told.items()}, "unseen": float(unseen)}


def _encoded(
    tokenizer: Any,
    chats: Path,
    texts: tuple[Sequence[str], Sequence[str]],
    config: FineTuningConfig,
    names: Sequence[str],
    cut: Any,
) -> Iterator[Encoded]:
    """The rows of all chats, then those of the texts to learn and of those to replay, each to its first `max_length`
    tokens; of exercises and of the latter as many as are replayed."""
    learnt, replayed = texts
    of_texts, of_exercises = _allowances(config, chats, texts)
    batches = (
        [chat for chat in batch.to_pylist() if _is_taken(config, chat, of_exercises)]
        for batch in artifact.Shards(chats, "chat/2").batches(CHATS_AT_ONCE)
    )
    yield from map_ordered(functools.partial(_rows_of_chats, cut, names, config.replay_share is not None), batches)
    taken = (text for text in replayed if of_texts.takes(len(text)))
    for kind, own in (("others", learnt), ("replayed", taken)):
        for batch in token_shards.in_batches(own):
            rows = [ids[: config.max_length] for ids in token_shards.whole_texts(tokenizer, batch)]
            counts = {"texts": len(rows), "trained_tokens": sum(map(len, rows)), kind: sum(map(len, batch))}
            yield token_shards.encoded([(ids, [True] * len(ids)) for ids in rows], counts, [ALWAYS] * len(rows))
    yield token_shards.encoded([], {"not_replayed": of_texts.left_out + of_exercises.left_out})


def _allowances(
    config: FineTuningConfig, chats: Path, texts: tuple[Sequence[str], Sequence[str]]
) -> tuple[Allowance, Allowance]:
    """What may be replayed of texts and of exercises: a part of what the chats and the texts to learn have."""
    if config.replay_share is None:
        return replay.allowances(config, 0)
    learnt, replayed = (sum(map(len, own)) for own in texts)
    others, exercises = learnt, 0
    for batch in artifact.Shards(chats, "chat/2").batches(CHATS_AT_ONCE, ["messages", "origin", "task"]):
        for chat in batch.to_pylist():
            size = replay.characters(chat) if _is_read(config, chat) else 0
            exercises += size if replay.is_exercise(chat) else 0
            others += 0 if replay.is_exercise(chat) else size
    return replay.allowances(config, others, texts=replayed, exercises=exercises)


def _is_read(config: FineTuningConfig, chat: dict[str, Any]) -> bool:
    """Whether a chat is of the tasks of `config`, of which none means all."""
    return not config.tasks or chat.get("task", config.tasks[0]) in config.tasks


def _is_taken(config: FineTuningConfig, chat: dict[str, Any], of_exercises: Allowance) -> bool:
    """False for an exercise beyond those that are replayed."""
    if not (replay.is_exercise(chat) and _is_read(config, chat)):
        return True
    return of_exercises.takes(replay.characters(chat))


def _rows_of_chats(cut: Any, names: Sequence[str], in_all_epochs: bool, chats: list[dict[str, Any]]) -> Encoded:
    """Rows of some chats, with how many chats were read, and kept or left out for each reason of `_cut`, and the
    characters of those kept. `in_all_epochs`: whether exercises are, as texts, of no task that is drawn."""
    rows: list[Row] = []
    groups: list[int] = []
    counts = {"read": len(chats), "chats": 0, "trained_tokens": 0, "replayed": 0, "others": 0}
    counts |= dict.fromkeys(REASONS, 0)
    for chat in chats:
        kept, reasons = cut(chat)
        is_exercise = replay.is_exercise(chat)
        rows += kept
        groups += [ALWAYS if is_exercise and in_all_epochs else names.index(chat["task"])] * len(kept)
        counts["chats"] += bool(kept)
        counts["replayed" if is_exercise else "others"] += replay.characters(chat) if kept else 0
        for reason in reasons:
            counts[reason] += 1
        counts["trained_tokens"] += sum(sum(trained) for _, trained in kept)
    return token_shards.encoded(rows, counts, groups)


def _cut(tokenizer: Any, config: FineTuningConfig, where: str, chat: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """(rows of at most `max_length` tokens that have something to train, what is counted of the chat) of a chat/2 row:
    `other_tasks`; `too_long` if one row was longer; `without_loss` if nothing that fits is trained; `end_inside` if the
    assistant says what ends a turn."""
    max_length, too_long = config.max_length, config.too_long
    if not _is_read(config, chat):
        return [], ["other_tasks"]
    if not any(turn["role"] == "assistant" for turn in chat["messages"]):
        return [], ["without_loss"]
    # What a corrected chat says before its last turn is wrong.
    train_on: templates.TrainOn = "last_turn" if chat.get("origin") == CORRECTED else config.train_on
    try:
        made = templates.trained_rows(tokenizer, chat["messages"], chat["tools"], train_on, config.train_reasoning)
    except EndInsideError as error:
        logger.warning("left out: chat %s: %s", chat["id"], error)
        return [], ["end_inside"]
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
    found = {"too_long": longest > max_length, "without_loss": bool(fitting) and not kept}
    return kept, [reason for reason, is_so in found.items() if is_so]


def _told(counts: dict[str, int], config: FineTuningConfig, where: str) -> dict[str, float]:
    """What is told of the rows, with a warning where many chats are too long; DataError if none is left."""
    read = counts["read"] - counts["other_tasks"]
    if not read:
        raise DataError(
            f"{where}: there is no chat to learn from; what the recipe's files and tasks give was left out before "
            "(warnings and `rejects` of chat_curation and synthetic_data tell why: rows that hold questions of the "
            "evaluation sets are)"
        )
    if not counts["chats"]:
        advice = "raise it" if counts["too_long"] else "give chats in which the assistant answers"
        raise DataError(
            f"{where}: none of the {read} chats fits in {where}.max_length = {config.max_length} tokens with "
            f"a token to train ({counts['too_long']} too long, {counts['without_loss']} without one, "
            f"{counts['end_inside']} that say what ends a turn); {advice}"
        )
    fraction = counts["too_long"] / read
    training.warn_of_too_long(counts["too_long"], read, "chats", config.max_length, config.too_long)
    names = ["chats", "texts", "too_long", "without_loss", "end_inside", "trained_tokens"]
    names += ["other_tasks"] if config.tasks else []
    names += ["not_replayed"] if config.replay_share is not None else []
    told = {name: float(counts[name]) for name in names}
    replayed = replay.fraction(config, counts["replayed"], counts["others"], where)
    return {**told, "too_long_fraction": fraction, "replay_fraction": replayed}


def labelled_rows(
    config: FineTuningConfig, tokenizer: Any, chats: Sequence[dict[str, Any]], where: str
) -> list[dict[str, list[int]]]:
    """The rows of some chats, of `messages` and `tools`, as they are trained: `input_ids`, and `labels` of those tokens
    that have a loss."""
    rows = (row for chat in chats for row in _cut(tokenizer, config, where, {"id": "", **chat})[0])
    return [
        {"input_ids": ids, "labels": [token if own else IGNORED for token, own in zip(ids, trained, strict=True)]}
        for ids, trained in rows
    ]


def rows_at_once(rows: Sequence[dict[str, list[int]]]) -> int:
    """Rows of a validation batch: 64, or fewer where that would be more tokens than go through the layers at once."""
    longest = max((len(row["input_ids"]) for row in rows), default=1)
    return max(1, min(64, likelihood.BATCH_TOKENS // longest))
