"""Evaluation: one model answers every evaluation set of the recipe, as it will be served."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, cast

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.data.chats import as_text
from bloomery.components.core.data.text_metrics import CORPUS_METRICS, TextMetric, corpus_score
from bloomery.components.core.declare import declare
from bloomery.components.core.modelling.context import context_tokens, fitting
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.records import EvalResult
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.core.scoring.tasks import TaskConfig, Tasks
from bloomery.components.core.scoring.verify import extract, extract_reference
from bloomery.components.evaluation import analysis, harness
from bloomery.components.evaluation.config import EvaluationConfig

logger = logging.getLogger(__name__)


@declare(accelerator=True, secrets=("HF_TOKEN",))
def run(
    config: EvaluationConfig,
    *,
    model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    results: Annotated[Path, Writes("eval_result/2")],
) -> dict[str, float]:
    """Answer every evaluation set of `tasks` greedily with `model`, score the answers and write one row for each.

    An empty `model` artifact, which stands for "there is no champion", gives no rows. With `lm_eval` its tasks are
    answered too, as tasks `lm_eval/<name>`, and how stands in lm_eval.json beside the rows.
    Returns: for each task and set, evaluation/<task>.<set>.<metric> (accuracy, chrf, bleu, rouge_1, rouge_2, rouge_l;
             perplexity a token), .stderr where there are two and more, and .n; of chrF and BLEU also .corpus_chrf and
             .corpus_bleu, which are no means; for label tasks what `analysis.classification` measures; with repeats,
             .flipped_fraction: the share of answers whose score changed in another batch; .too_long: questions left
             out, where there are any.
    Raises:  DataError where no question of a task fits into the context.
    """
    known = Tasks(tasks)
    rows: list[dict[str, Any]] = []
    too_long: dict[str, float] = {}
    if artifact.read_manifest(model).files:
        generator = Generator.load(model)
        for repeat in range(config.repeats):
            rows += answer(generator, known, config, repeat=repeat)
        too_long = _left_out(rows, known, config)
        if config.lm_eval:
            found, measured = harness.answer(generator, config.lm_eval, tasks)
            rows += found
            harness.write(measured, results)
    artifact.write_rows(results, "eval_result/2", EvalResult.table(rows), rows_in=0, rows_made=len(rows))
    return summarise(rows, known) | too_long


def answer(
    generator: Generator, tasks: Tasks, config: EvaluationConfig, *splits: str, repeat: int = 0
) -> list[dict[str, Any]]:
    """eval_result/2 rows of `splits` (none named: of every evaluation set), task by task.

    Repeats after the first answer `repeat_limit` prompts of each set again, in other batches, and no perplexity.
    """
    limit = min(config.limit or config.repeat_limit, config.repeat_limit) if repeat else config.limit
    rows: list[dict[str, Any]] = []
    for name, task in tasks.configs.items():
        prompts = _limited(tasks.prompts(*splits, task=name), limit)
        if not tasks.is_scored_by_likelihood(name):
            room = context_tokens(generator.model.config, generator.tokenizer) - task.max_new_tokens
            asked = fitting(
                generator.tokenizer,
                tasks.conversations(prompts),
                [row.tools for row in prompts],
                room,
                config.too_long,
                f"evaluation: tasks.{name}",
            )
            prompts = [row for row, messages in zip(prompts, asked, strict=True) if messages]
            texts = generator.generate(
                [messages for messages in asked if messages],
                tools=[row.tools for row in prompts],
                max_new_tokens=task.max_new_tokens,
                composition=repeat,
            )
            for row, (text,) in zip(prompts, texts, strict=True):
                score, reason = tasks.verify(name, text, row.reference)
                rows.append(_result(row, task, repeat, text, score, 1.0, reason))
        elif not repeat:
            scores = generator.log_likelihood([row.reference for row in prompts], max_length=config.max_length)
            rows += [
                _result(row, task, repeat, "", nats / max(1, count), float(count), "log-likelihood per token")
                for row, (nats, count) in zip(prompts, scores, strict=True)
            ]
    return rows


def _left_out(rows: list[dict[str, Any]], tasks: Tasks, config: EvaluationConfig) -> dict[str, float]:
    """`evaluation/<task>.<set>.too_long` of the sets of which questions are not among `rows`."""
    missing = Counter(
        (row.task, row.split) for name in tasks.configs for row in _limited(tasks.prompts(task=name), config.limit)
    )
    missing.subtract((row["task"], row["split"]) for row in rows if row["repeat"] == 0)
    found = {f"evaluation/{task}.{split}.too_long": float(count) for (task, split), count in missing.items() if count}
    if found:
        logger.warning("questions longer than the model's context are left out: %s", found)
    return found


def summarise(rows: list[dict[str, Any]], tasks: Tasks) -> dict[str, float]:
    """Mean, standard error and number of prompts of each task and set."""
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault((row["task"], row["split"]), []).append(row)
    metrics = {}
    for (task, split), members in sets.items():
        key, config = f"evaluation/{task}.{split}", tasks.configs.get(task)
        first = [row for row in members if row["repeat"] == 0]
        mean, stderr = mean_stderr([row["score"] for row in first], [row["weight"] for row in first])
        metric = first[0]["metric"]
        if metric == "log_likelihood":
            # The error of exp(x) is exp(x) times the error of x, to first order.
            mean, stderr, metric = math.exp(-mean), math.exp(-mean) * stderr, "perplexity"
        metrics |= {f"{key}.{metric}": mean} | ({f"{key}.stderr": stderr} if len(first) > 1 else {})
        if config and metric in CORPUS_METRICS:
            metrics[f"{key}.corpus_{metric}"] = _corpus(first, config)
        if config and config.verifier.kind == "label":
            labels = analysis.classification(*analysis.label_pairs(first, config.verifier))
            metrics |= {f"{key}.{name}": value for name, value in labels.items()}
        metrics[f"{key}.n"] = float(len(first))
        if len(members) > len(first):
            metrics[f"{key}.flipped_fraction"] = _flipped(first, members)
    return metrics


def _corpus(rows: list[dict[str, Any]], task: TaskConfig) -> float:
    answers = [extract(task.verifier, row["response"]) or "" for row in rows]
    metric = cast(TextMetric, task.verifier.metric)
    references = [extract_reference(task.verifier, row["reference"]) for row in rows]
    return corpus_score(metric, answers, references, task.verifier.tokenizer)


def _flipped(first: list[dict[str, Any]], members: list[dict[str, Any]]) -> float:
    scores = {row["id"]: row["score"] for row in first}
    again = [row for row in members if row["repeat"]]
    return sum(row["score"] != scores[row["id"]] for row in again) / len(again)


def _limited(prompts: list[Any], limit: int | None) -> list[Any]:
    if limit is None:
        return prompts
    taken: dict[str, int] = {}
    kept = []
    for row in prompts:
        taken[row.split] = taken.get(row.split, 0) + 1
        if taken[row.split] <= limit:
            kept.append(row)
    return kept


def _result(
    row: Any, task: TaskConfig, repeat: int, response: str, score: float, weight: float, reason: str
) -> dict[str, Any]:
    return {
        "id": row.id,
        "task": row.task,
        "split": row.split,
        "group": row.group,
        "prompt": as_text(row.messages),
        "reference": row.reference,
        "response": response,
        "metric": task.verifier.metric,
        "repeat": repeat,
        "score": score,
        "weight": weight,
        "reason": reason,
    }
