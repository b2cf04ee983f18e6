"""Reinforcement learning: the model answers each prompt several times, and the better answers gain on the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import adapters, checkpoints, templates, training
from bloomery.components.core.modelling.context import check_embedded, context_tokens, fitting
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.core.records import Prompt
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.grpo import alarms
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.grpo.rewards import Rewards
from bloomery.components.grpo.trainer import arguments, trainer_for

logger = logging.getLogger(__name__)


@declare(accelerator="all")
def run(
    config: GrpoConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    prompts: Annotated[Path | None, Reads("prompt/2", optional=True)] = None,
    reward_model: Annotated[Path | None, Reads("reward_model/1", optional=True)] = None,
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Let `base_model` answer `prompts`, learn from what the answers are worth, and write `model`.

    Reads:   base_model, tasks (their verifiers), prompts (none: the unlabelled questions of the domain tasks, or the
             training ones where there are none), reward_model (scores answers beside the verifiers, or in place of
             them).
    Writes:  model (as base_model, with other weights).
    Returns: grpo/prompts (asked in an epoch), grpo/too_long (left out); and the means over the first and the last tenth
             of the logged intervals, as grpo/<name>_first and _last: reward, its parts (verifier, reward_model, length,
             format) where there are several, spread (share of prompts whose answers are not all worth the same),
             answer_tokens, cut_short (share of answers at the longest length), entropy and, with beta above 0, kl
             (both in nats a token).
    Raises:  DataError if there is no question, or none fits; ModelError if the reward model has another tokenizer;
             DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import GenerationConfig, set_seed

    known = Tasks(tasks)
    given = artifact.read_table(prompts, "prompt/2").to_pylist() if prompts else []
    rows = [Prompt.model_construct(**row) for row in given] or known.to_sample_from("domain")
    if not rows:
        raise DataError("grpo: no domain task has questions in `unlabelled` or `train`; add such a split")
    set_seed(config.seed)
    network, tokenizer = training.load(config, base_model)
    checkpoints.check_template(tokenizer, base_model)
    published = network.generation_config
    ends = templates.end_tokens(tokenizer, published)
    # What is sampled is what is learnt from: no penalty and no nucleus of the published settings comes between.
    network.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=templates.pad_token(tokenizer), suppress_tokens=published.suppress_tokens
    )
    scorer = RewardModel.load(reward_model) if reward_model and config.rewards.reward_model else None
    rewards = Rewards(config.rewards, tokenizer, ends, known, scorer)
    readers = [network, *([scorer.network] if scorer else [])]
    limits = [config.max_length, *(context_tokens(reader.config, tokenizer) for reader in readers)]
    most = min(limits)
    longest = max(known.configs[row.task].max_new_tokens for row in rows)  # to which every answer may go on
    limit = "grpo.max_length" if most == config.max_length else "the model's context"
    asked = tokens_of(tokenizer, rows, known, most - longest, config, limit)
    check_embedded(network.config, tokenizer, lambda: max(max(row["prompt"]) for row in asked), "grpo")
    trainer = training.train(
        config,
        trainer_for(config, rewards),
        network,  # its reference is loaded again from base_model, which the network remembers as its path
        tokenizer,
        Dataset.from_list(asked),
        callbacks=[alarms.callback(config.kl_budget)],
        **arguments(config, rewards, longest),
        **repository_code.allowed(base_model),
    )
    network = adapters.merged(trainer.model, model).eval()
    network.generation_config = published
    checkpoints.save(model, network, tokenizer, like=base_model)
    return {
        "grpo/prompts": float(len(asked)),
        "grpo/too_long": float(len(rows) - len(asked)),
        **{f"grpo/{name}": value for name, value in measured(alarms.steps_of(trainer.state.log_history)).items()},
    }


def tokens_of(
    tokenizer: Any,
    rows: Sequence[Any],
    tasks: Tasks,
    room: int,
    config: GrpoConfig,
    limit: str = "the model's context",
) -> list[dict[str, Any]]:
    """The prompts of at most `room` tokens, which `limit` leaves, as token ids, with what their rewards need."""
    found = []
    for name in tasks.configs:
        mine = [row for row in rows if row.task == name]
        if not mine:
            continue
        conversations, tools = [row.messages for row in mine], [row.tools for row in mine]
        fits = fitting(tokenizer, conversations, tools, room, config.too_long, f"grpo: tasks.{name}", limit)
        for row, messages in zip(mine, fits, strict=True):
            if messages:
                ids = templates.prompt_tokens(tokenizer, messages, row.tools)
                found.append({"prompt": ids, "task": name, "reference": row.reference})
    if len(found) < len(rows):
        logger.warning(
            "%d of %d prompts leave no room for an answer and are not asked", len(rows) - len(found), len(rows)
        )
    return found


def measured(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The course of what is told of the answers: each measure in the first and in the last tenth of `history`."""
    if not history:
        return {}
    tenth = max(1, len(history) // 10)
    parts = {key.split("/")[1]: key for key in history[0] if key.startswith("rewards/") and key.endswith("/mean")}
    names = {
        "reward": "reward",
        **(parts if len(parts) > 1 else {}),
        "answer_tokens": "completions/mean_length",
        "cut_short": "completions/clipped_ratio",
        "entropy": "entropy",
        **({"kl": "kl"} if "kl" in history[-1] else {}),
    }
    told = {}
    for when, entries in (("first", history[:tenth]), ("last", history[-tenth:])):
        told |= {f"{name}_{when}": alarms.mean(entries, key) for name, key in names.items()}
        told[f"spread_{when}"] = 1 - alarms.mean(entries, "frac_reward_zero_std")
    return told
