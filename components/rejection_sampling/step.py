"""Rejection sampling: the model answers each prompt several times, and what verifies is kept.

Right answers become chats for another round of fine-tuning (RFT, Yuan et al. 2023, arXiv 2308.01825); a right and
a wrong answer to one prompt become an on-policy preference pair.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.data.chats import CORRECTED, Turn, as_text, identity, message
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import proof, templates
from bloomery.components.core.modelling.context import context_tokens, fitting
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.reward_models import RewardModel
from bloomery.components.core.records import Chat, Preference, Prompt, Reject, content_id
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.rejection_sampling.config import RejectionSamplingConfig

logger = logging.getLogger(__name__)

BATCH_ROWS = 1_000
"""Chats that are looked at together: of those that pass through, no more are held as Python's objects."""


@declare(accelerator=True)
def run(
    config: RejectionSamplingConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    chats: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
    prompts: Annotated[Path | None, Reads("prompt/2", optional=True)] = None,
    reward_model: Annotated[Path | None, Reads("reward_model/1", optional=True)] = None,
    sampled_chats: Annotated[Path, Writes("chat/2")],
    preferences: Annotated[Path, Writes("preference/3")],
    rejects: Annotated[Path, Writes("reject/1")],
) -> dict[str, float]:
    """Sample answers to `prompts` from `base_model`, verify them, and write `chats` plus the accepted ones.

    Right is a score of `min_score` or more: such answers are accepted and chosen, the others rejected; a reward model
    ranks the right ones, or with `judge: reward_model` takes the verifiers' place. Where none was right, `abstain` is
    chosen, if it is set. An empty answer is counted, and never learnt from: it is no chat and no part of a pair. What
    was thought before an answer is kept with it, and is not judged.
    Reads:   base_model, chats (kept as they are), prompts (with the references that the verifiers need; none: the
             unlabelled questions of the domain tasks, or the training ones where there are none), tasks, reward_model.
    Writes:  sampled_chats, preferences, rejects (a prompt without a right answer, and the reason of its likeliest
             failure; a prompt too long to be asked).
    Returns: rejection_sampling/prompts, /too_long (prompts that were not asked), /accepted_chats, /corrections (chats
             in which a wrong answer is put right, where they are asked for), /preferences,
             /abstentions (those of them that prefer `abstain`, where it is set), /pass_at_1 (mean share of right
             samples of those that were), /pass_at_k (share of prompts with a right one), both by the verifiers; with a
             reward model /reward (mean over the samples).
    Raises:  DataError if there is no question, or none of a task fits into the context.
    """
    known = Tasks(tasks)
    given = artifact.read_table(prompts, "prompt/2").to_pylist() if prompts else []
    rows = [Prompt.model_construct(**row) for row in given] or known.to_sample_from("domain")
    if not rows:
        raise DataError("rejection_sampling: no domain task has questions in `unlabelled` or `train`; add such a split")
    seeds = artifact.Shards(chats, "chat/2") if chats else None
    answered = _answered(seeds, rows) if seeds else set()
    answers = sample(Generator.load(base_model), rows, known, config)
    scorer = RewardModel.load(reward_model) if reward_model else None

    accepted: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    corrected: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    abstentions: list[dict[str, Any]] = []
    shares: list[float] = []
    rewards: list[float] = []
    for row, turns in zip(rows, answers, strict=True):
        texts = [proof.answer(turn["content"]) for turn in turns]
        said = dict(zip(reversed(texts), reversed(turns), strict=True))  # the first turn with an answer stands for it
        if not texts:
            failed.append(_reject(row, "too_long", "leaves no room for an answer in the model's context"))
            continue
        counts = Counter(texts)
        verdicts = {text: known.verify(row.task, text, row.reference) for text in counts}
        likeliest = [text for text, _ in counts.most_common() if text.strip()]
        right = [text for text in likeliest if verdicts[text][0] >= config.min_score]
        wrong = [text for text in likeliest if verdicts[text][0] < config.min_score]
        shares.append(sum(verdicts[text][0] >= config.min_score for text in texts) / len(texts))
        if scorer is None:
            right.sort(key=lambda text: -verdicts[text][0])
        else:
            worth = dict(zip(counts, scorer.scores_of_answers(row.messages, row.tools, list(counts)), strict=True))
            rewards += [worth[text] for text in texts]
            if config.judge == "reward_model" and likeliest:
                right = [max(likeliest, key=lambda text: worth[text])]
                wrong = sorted(set(likeliest) - set(right), key=lambda text: (worth[text], text))
            right.sort(key=lambda text: -worth[text])
        if not right:
            detail = f"likeliest of {len(texts)} samples: {verdicts[counts.most_common(1)[0][0]][1]}"
            failed.append(_reject(row, "no_right_sample", detail))
            abstentions += _abstention(row, wrong, said, config)
        elif identity(row.messages, row.tools) not in answered:
            accepted += [_chat(row, said[text]) for text in right[: config.accepted_per_prompt]]
        if right:
            tried = wrong[: config.corrections_per_prompt]
            corrected += [_correction(row, said[text], said[right[0]], config) for text in tried]
        for position in range(min(config.pairs_per_prompt, len(wrong)) if right else 0):
            pairs.append(_pair(row, said[right[position % len(right)]], said[wrong[position]]))

    pairs += abstentions
    made = accepted + corrected
    writer = artifact.Writer(sampled_chats, "chat/2")
    for table, _ in seeds.tables() if seeds else ():
        writer.add(table)
    writer.add(Chat.table(made))
    writer.close(rows_in=seeds.num_rows if seeds else 0, rows_made=len(made))
    artifact.write_rows(preferences, "preference/3", Preference.table(pairs), rows_in=0, rows_made=len(pairs))
    artifact.write_rows(rejects, "reject/1", Reject.table(failed))
    return {
        "rejection_sampling/prompts": float(len(rows)),
        "rejection_sampling/too_long": float(len(rows) - len(shares)),
        "rejection_sampling/accepted_chats": float(len(accepted)),
        **({"rejection_sampling/corrections": float(len(corrected))} if config.corrections_per_prompt else {}),
        "rejection_sampling/preferences": float(len(pairs)),
        **({"rejection_sampling/abstentions": float(len(abstentions))} if config.abstain else {}),
        "rejection_sampling/pass_at_1": sum(shares) / max(1, len(shares)),
        "rejection_sampling/pass_at_k": sum(share > 0 for share in shares) / max(1, len(shares)),
        **({"rejection_sampling/reward": sum(rewards) / len(rewards)} if rewards else {}),
    }


def _answered(seeds: artifact.Shards, rows: list[Any]) -> set[str]:
    """The conversations of `rows` that a chat of `seeds` answers."""
    asked, found = {identity(row.messages, row.tools) for row in rows}, set()
    for table, _ in seeds.tables():
        for batch in table.select(["messages", "tools"]).to_batches(max_chunksize=BATCH_ROWS):
            found |= asked & {identity(row["messages"][:-1], row["tools"]) for row in batch.to_pylist()}
    return found


def sample(generator: Generator, rows: list[Any], tasks: Tasks, config: RejectionSamplingConfig) -> list[list[Turn]]:
    """`num_samples` turns that answer each row, in order, none of one that is too long; tasks may differ in their
    longest answer."""
    answers: list[list[Turn]] = [[] for _ in rows]
    context = context_tokens(generator.model.config, generator.tokenizer)
    for name, task in tasks.configs.items():
        mine = [index for index, row in enumerate(rows) if row.task == name]
        room = context - task.max_new_tokens
        where = f"rejection_sampling: tasks.{name}"
        conversations, tools = [rows[i].messages for i in mine], [rows[i].tools for i in mine]
        asked = fitting(generator.tokenizer, conversations, tools, room, config.too_long, where)
        mine = [index for index, messages in zip(mine, asked, strict=True) if messages]
        turns = generator.generate(
            [messages for messages in asked if messages],
            tools=[rows[index].tools for index in mine],
            max_new_tokens=task.max_new_tokens,
            num_samples=config.num_samples,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
            read=templates.said,
        )
        for index, found in zip(mine, turns, strict=True):
            answers[index] = found
    num_left_out = sum(not turns for turns in answers)
    if num_left_out:
        logger.warning(
            "%d of %d prompts are longer than the model's context and are not asked", num_left_out, len(rows)
        )
    return answers


def _reject(row: Any, reason: str, detail: str) -> dict[str, Any]:
    text = as_text(row.messages)[:500]
    return {"id": row.id, "source": row.task, "reason": reason, "detail": detail, "text": text}


def _chat(row: Any, answer: Turn) -> dict[str, Any]:
    return {
        "id": content_id(identity(row.messages, row.tools), _text(answer)),
        "messages": [*row.messages, answer],
        "tools": row.tools,
        "task": row.task,
        "origin": "sampled",
        "parent": row.id,
    }


def _text(answer: Turn) -> str:
    """All that was said, of which the key of a row is made."""
    return f"{answer['reasoning']}{answer['content']}"


def _correction(row: Any, wrong: Turn, right: Turn, config: RejectionSamplingConfig) -> dict[str, Any]:
    """A wrong answer, what the user says to it, and a right one."""
    second = [wrong, message("user", config.correction), right]
    key = content_id(identity(row.messages, row.tools), _text(wrong), config.correction, _text(right))
    return {**_chat(row, right), "id": key, "messages": [*row.messages, *second], "origin": CORRECTED}


def _abstention(
    row: Any, wrong: list[str], said: dict[str, Turn], config: RejectionSamplingConfig
) -> list[dict[str, Any]]:
    """The pair that prefers `abstain` to the likeliest wrong answer that says something else, if there are both."""
    polite = config.abstain.get(row.group, "") if isinstance(config.abstain, dict) else config.abstain
    others = [text for text in wrong if text.strip() != polite.strip()]
    return [_pair(row, message("assistant", polite), said[others[0]])] if polite and others else []


def _pair(row: Any, chosen: Turn, rejected: Turn) -> dict[str, Any]:
    return {
        "id": content_id(identity(row.messages, row.tools), _text(chosen), _text(rejected)),
        "task": row.task,
        "messages": row.messages,
        "tools": row.tools,
        "chosen": [chosen],
        "rejected": [rejected],
    }
