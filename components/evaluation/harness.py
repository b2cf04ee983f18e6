"""The tasks of lm-eval, answered by the model that is loaded already."""

from __future__ import annotations

import json
from collections import Counter
from numbers import Real
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.likelihood import rows_of_logits
from bloomery.components.core.records import content_id
from bloomery.components.core.scoring.lm_eval_tasks import PREFIX, LmEvalConfig, as_json, harness_version, load

BATCH, EXPECTED_TOKENS = 16, 128
"""Sequences that the harness runs at once: fewer where the logits of so many tokens of each exceed LOGIT_BYTES, as it
makes those of whole batches."""
SEED = 1234
"""Of the choice of examples: what lm-eval's own command line uses."""


def answer(generator: Generator, config: LmEvalConfig, tasks: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(eval_result/2 rows of every document, how they were measured: what is written as lm_eval.json).

    The score is the first metric of the task that gives each document a number in [0, 1], higher being better, under
    its first filter.
    """
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    loaded = load(config.tasks, tasks)
    for task in loaded.values():
        if config.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    torch.manual_seed(SEED)
    model = HFLM(
        pretrained=generator.model,
        tokenizer=generator.tokenizer,
        batch_size=max(1, min(BATCH, rows_of_logits(generator.model) // EXPECTED_TOKENS)),
        add_bos_token=config.add_bos_token,
    )
    found = lm_eval.evaluate(
        lm=model,
        task_dict={"tasks": loaded, "groups": {}, "group_map": {}},
        limit=config.limit,
        bootstrap_iters=0,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.apply_chat_template,
    )
    rows: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    for name in sorted(loaded):
        samples = [one for one in found["samples"][name] if one["filter"] == found["samples"][name][0]["filter"]]
        samples.sort(key=lambda one: one["doc_id"])
        metric = _main_metric(name, samples, found["higher_is_better"][name])
        split = "test" if loaded[name].has_test_docs() else "validation"
        rows += _rows(name, split, metric, samples)
        measured[name] = {
            "version": found["versions"][name],
            "num_fewshot": found["n-shot"][name],
            "metric": metric,
            "filter": samples[0]["filter"],
            "documents": len(samples),
        }
    # Asked of the encoded text: a tokenizer may name a BOS token and put it nowhere.
    bos = generator.tokenizer.bos_token_id
    begins = bos is not None and model.tok_encode("a")[0] == bos
    settings = config.model_dump(mode="json", include={"add_bos_token", "apply_chat_template", "limit"})
    facts = {"lm_eval": harness_version(), **settings, "texts_begin_with_bos": begins, "tasks": measured}
    return rows, facts


def write(measured: dict[str, Any], target: Path) -> None:
    """Write how the rows were measured beside them, as `target`/lm_eval.json."""
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured, ensure_ascii=False, indent=1, sort_keys=True)
    (target / "lm_eval.json").write_text(text, encoding="utf-8")


def _main_metric(name: str, samples: list[dict[str, Any]], higher_is_better: dict[str, bool]) -> str:
    for metric, is_better in higher_is_better.items():
        values = [one.get(metric) for one in samples]
        if is_better and all(isinstance(value, Real) and 0 <= value <= 1 for value in values):
            return metric
    raise DataError(
        f"evaluation.lm_eval.tasks: no metric of {name} ({', '.join(higher_is_better)}) gives each document a score in "
        "[0, 1], so it cannot be compared by document; leave the task out"
    )


def _rows(name: str, split: str, metric: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    seen: Counter[str] = Counter()
    for one in samples:
        document = as_json(one["doc"])
        # The same document may stand in a task twice, and each is a row.
        identity = content_id(PREFIX + name, document, *(["again"] * seen[document]))
        seen[document] += 1
        rows.append(
            {
                "id": identity,
                "task": PREFIX + name,
                "split": split,
                "group": "",
                "prompt": str(one["arguments"][0][0]),
                "reference": str(one["target"]),
                "response": _response(one),
                "metric": metric,
                "repeat": 0,
                "score": float(one[metric]),
                "weight": 1.0,
                "reason": f"lm-eval, filter {one['filter']}",
            }
        )
    return rows


def _response(sample: dict[str, Any]) -> str:
    """The generated text after the filter, or the likeliest choice."""
    answers = sample["filtered_resps"]
    if isinstance(answers[0], str):
        return answers[0]
    likeliest = max(range(len(answers)), key=lambda index: answers[index][0])
    return str(sample["arguments"][likeliest][1]).strip() if len(answers) > 1 else ""
