"""What a variant is worth and what it costs, measured on the checkpoint as it stands on disk.

`python -m bloomery.components.quantisation.measure MODEL TASKS CHATS TARGET` writes the findings of `measure` to
the JSON file TARGET, or the error's name and message. It runs in a process of its own, see `step.measured_apart`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.modelling import checkpoints, faults, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.latency import latency
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.core.step import configure_logging

FEW, CHAT_TOKENS = 64, 96
"""Questions to ask where the `validation` split has fewer: 62 equal answers of 64 show an agreement of 90 %; and the
longest answer to one that is of no task, as `max_new_tokens` of a task."""
PERPLEXITY_TEXTS, PERPLEXITY_TOKENS = 64, 512
"""Texts of each perplexity task that are read, and tokens of each: some 30,000 tokens a task at most."""
LIBRARIES = {"torchao": "torchao", "compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
"""Library that loads a checkpoint by its `quant_method`; imported before memory is counted."""


def measure(model: Path, tasks: Path, chats: Path | None) -> dict[str, Any]:
    """Load `model` and let it answer questions that are in no evaluation set, greedily; `questions` says which.

    Returns: bytes (of the weight files), memory_bytes (rise of the resident memory from before loading to its peak
             while loading and answering one prompt), weight_bytes (of the loaded weights), asked (questions by
             where they come from), answers, scores (of those of the `validation` split, which come first),
             likelihoods ([nats, tokens] of each text of the perplexity tasks), prefill_tokens, prefill_seconds,
             decode_seconds_per_token (medians, batch 1), kv_cache_bytes_per_token.
    Raises:  ModelError if the checkpoint does not load.
    """
    known = Tasks(tasks)
    asked = questions(known, chats)
    _import_libraries(model)
    before = _restart_peak()
    loaded = Generator.load(model)
    prompts = [templates.prompt_tokens(loaded.tokenizer, row.messages, row.tools) for row in asked]
    times = latency(loaded, prompts or [templates.prompt_tokens(loaded.tokenizer, chat("?"))])
    memory_bytes = _peak() - before
    answers = [""] * len(asked)
    for name in sorted({row.task for row in asked}):
        mine = [index for index, row in enumerate(asked) if row.task == name]
        longest = known.configs[name].max_new_tokens if name in known.configs else CHAT_TOKENS
        texts = loaded.generate(
            [asked[index].messages for index in mine],
            tools=[asked[index].tools for index in mine],
            max_new_tokens=longest,
        )
        for index, (text,) in zip(mine, texts, strict=True):
            answers[index] = text
    validated = [(row, text) for row, text in zip(asked, answers, strict=True) if row.split == "validation"]
    return {
        "bytes": checkpoints.num_bytes(model),
        "asked": dict(Counter(row.split for row in asked)),
        "answers": answers,
        "scores": [known.verify(row.task, text, row.reference)[0] for row, text in validated],
        "likelihoods": likelihoods(loaded, known),
        **times,
        "weight_bytes": weight_bytes(loaded.model),
        "memory_bytes": memory_bytes,
    }


def questions(tasks: Tasks, chats: Path | None) -> list[Any]:
    """prompt/2 rows to ask: all of the `validation` split, and where they are fewer than FEW, others up to FEW, whose
    answers are compared with those of the model before and not scored: `unlabelled`, `train`, and where no task has
    one of these the beginnings of `chats`, where there are any. The evaluation sets choose nothing.
    """
    from bloomery.components.core.records import Prompt

    verifiable = [name for name in tasks.configs if not tasks.is_scored_by_likelihood(name)]
    found = [row for name in verifiable for row in tasks.prompts("validation", task=name)]
    for split in ("unlabelled", "train"):
        rows = [row for name in verifiable for row in tasks.prompts(split, task=name)]
        found += sorted(rows, key=lambda row: row.id)[: max(0, FEW - len(found))]
    if not found and chats is not None:
        for row in artifact.read_table(chats, "chat/2").sort_by("id").slice(0, FEW).to_pylist():
            roles = [turn["role"] for turn in row["messages"]]
            asked = row["messages"][: roles.index("assistant")]
            facts = {"id": row["id"], "task": "", "split": "chats", "reference": "", "group": ""}
            found.append(Prompt.model_construct(**facts, messages=asked, tools=row["tools"]))
    return found


def likelihoods(generator: Generator, tasks: Tasks) -> list[tuple[float, int]]:
    """(nats, tokens) of texts of all perplexity tasks, of the `validation` split where there is one, else of `train`;
    texts without a token to score are left out."""
    found: list[tuple[float, int]] = []
    for name in tasks.configs:
        if tasks.is_scored_by_likelihood(name):
            rows = tasks.prompts("validation", task=name) or tasks.prompts("train", task=name)
            texts = [row.reference for row in rows[:PERPLEXITY_TEXTS]]
            found += generator.log_likelihood(texts, max_length=PERPLEXITY_TOKENS)
    return [(nats, tokens) for nats, tokens in found if tokens]


def weight_bytes(model: Any) -> int:
    """Bytes of the parameters and buffers in memory, tied ones once; of quantised ones, what they hold."""
    held: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if hasattr(tensor, "tensor_data_names"):  # torchao's
            for name in tensor.tensor_data_names:
                add(getattr(tensor, name))
            return
        held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        state = getattr(tensor, "quant_state", None)  # bitsandbytes' scales
        if state is not None:
            add(state.absmax)

    for tensor in (*model.parameters(), *model.buffers()):
        add(tensor)
    return sum(held.values())


def _import_libraries(model: Path) -> None:
    """Import what loading will, by making the model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = checkpoints.load_config(model)
    method = getattr(config, "quantization_config", {}).get("quant_method")
    if method in LIBRARIES:
        importlib.import_module(LIBRARIES[method])
    if faults.gguf(model):
        importlib.import_module("gguf")
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config, **repository_code.allowed(model))


def _restart_peak() -> int:
    """Forget the peak of the resident memory so far, where the system allows it; returns what is resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") if sys.platform == "linux" else _peak()


def _peak() -> int:
    import resource

    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Measure MODEL on TASKS and the CHATS that may follow on the command line, and write TARGET."""
    configure_logging()
    target, model, tasks, *chats = map(Path, sys.argv[1:])
    try:
        with repository_code.believing([model]):
            found = measure(model, tasks, chats[0] if chats else None)
    except BloomeryError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    target.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
