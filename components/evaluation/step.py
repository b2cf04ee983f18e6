"""Evaluation: one model answers every evaluation set of the recipe, as it will be served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.generation import Generator
from bloomery.components.core.records import EvalResult, Prompt
from bloomery.components.core.statistics import mean_stderr
from bloomery.components.core.tasks import TaskConfig, Tasks
from bloomery.components.core.verify import extract, normalise
from bloomery.components.evaluation.config import EvaluationConfig


def run(
    config: EvaluationConfig,
    *,
    model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    results: Annotated[Path, Writes("eval_result/1")],
) -> dict[str, float]:
    """Answer every evaluation set of `tasks` greedily with `model`, score the answers and write one row for each.

    An empty `model` artifact, which stands for "there is no champion", gives no rows.
    Returns: for each task and set, evaluation/<task>.<set>.accuracy (or .perplexity, per token), .stderr and .n; for
             label tasks also .macro_precision, .macro_recall, .macro_f1, .cohen_kappa, .mcc and .no_label_fraction.
    """
    known = Tasks(tasks)
    rows = answer(Generator.load(model), known, config) if artifact.read_manifest(model).files else []
    artifact.write_rows(results, "eval_result/1", EvalResult.table(rows), rows_in=0, rows_made=len(rows))
    return summarise(rows, known)


def answer(generator: Generator, tasks: Tasks, config: EvaluationConfig, *splits: str) -> list[dict[str, Any]]:
    """eval_result/1 rows of `splits` (none named: of every evaluation set), task by task."""
    rows: list[dict[str, Any]] = []
    for name, task in tasks.configs.items():
        prompts = _limited(tasks.prompts(*splits, task=name), config.limit)
        if tasks.is_scored_by_likelihood(name):
            scores = generator.log_likelihood([row.reference for row in prompts], max_length=config.max_length)
            rows += [
                _result(row, "", nats / max(1, count), float(count), "log-likelihood per token")
                for row, (nats, count) in zip(prompts, scores, strict=True)
            ]
        else:
            texts = generator.generate([row.prompt for row in prompts], max_new_tokens=task.max_new_tokens)
            for row, (text,) in zip(prompts, texts, strict=True):
                score, reason = tasks.verify(name, text, row.reference)
                rows.append(_result(row, text, score, 1.0, reason))
    return rows


def summarise(rows: list[dict[str, Any]], tasks: Tasks) -> dict[str, float]:
    """Mean, standard error and number of prompts of each task and set."""
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault((row["task"], row["split"]), []).append(row)
    metrics = {}
    for (task, split), members in sets.items():
        mean, stderr = mean_stderr([row["score"] for row in members], [row["weight"] for row in members])
        key = f"evaluation/{task}.{split}"
        if tasks.is_scored_by_likelihood(task):
            # The error of exp(x) is exp(x) times the error of x, to first order.
            metrics |= {f"{key}.perplexity": math.exp(-mean), f"{key}.stderr": math.exp(-mean) * stderr}
        else:
            metrics |= {f"{key}.accuracy": mean, f"{key}.stderr": stderr}
        if tasks.configs[task].verifier.kind == "label":
            metrics |= {f"{key}.{name}": value for name, value in classification(members, tasks.configs[task]).items()}
        metrics[f"{key}.n"] = float(len(members))
    return metrics


def classification(rows: list[dict[str, Any]], task: TaskConfig) -> dict[str, float]:
    """Metrics of a closed set of labels, macro-averaged over the labels of the references.

    An answer that is no known label counts as a label of its own that is never right.
    """
    from sklearn import metrics

    fold = task.verifier.ignore_case
    truth = [normalise(row["reference"], fold) for row in rows]
    labels = sorted(set(truth))
    answers = [normalise(extract(task.verifier, row["response"]) or "", fold) for row in rows]
    found = [answer if answer in labels else "(no label)" for answer in answers]
    average = {"labels": labels, "average": "macro", "zero_division": 0.0}
    return {
        "macro_precision": float(metrics.precision_score(truth, found, **average)),
        "macro_recall": float(metrics.recall_score(truth, found, **average)),
        "macro_f1": float(metrics.f1_score(truth, found, **average)),
        "cohen_kappa": float(metrics.cohen_kappa_score(truth, found)),
        "mcc": float(metrics.matthews_corrcoef(truth, found)),
        "no_label_fraction": sum(answer == "(no label)" for answer in found) / len(found),
    }


def _limited(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    if limit is None:
        return prompts
    taken: dict[str, int] = {}
    kept = []
    for row in prompts:
        taken[row.split] = taken.get(row.split, 0) + 1
        if taken[row.split] <= limit:
            kept.append(row)
    return kept


def _result(row: Prompt, response: str, score: float, weight: float, reason: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "task": row.task,
        "split": row.split,
        "group": row.group,
        "prompt": row.prompt,
        "reference": row.reference,
        "response": response,
        "score": score,
        "weight": weight,
        "reason": reason,
    }
