"""How fast training is, beside a bare PyTorch loop, beside TRL's own defaults, and until its first step.

    python tests/benchmarks/train.py [PART …]     (all of them: under nine minutes)

Writes `train.json`, in which parts that are not run keep what they had:

- small, large: steps of sft at 1.1 and at 135 M random weights, all of them trained in 32 bits, and of a loop of some
  ten lines on the same batches from the same weights, by turns; `ratio` of tokens a second (ours : the loop's) with
  its standard error over n rounds, by the middle step of each; `loss_difference` between the two at the last step.
- packing: short chats, packed by us and as TRL's SFTTrainer trains them by its defaults, to as many tokens a step and
  in all; `ratio` of tokens a second, and the loss of both on other chats at the end, over seeds.
- start: seconds from `bloomery step sft` to the end of its first optimiser step.
- grpo: `grpo.py`, in which both take turns as well.
- memory: the peak of a training of 135 M parameters, 4 chats of 128 tokens a step, and what `bloomery plan` says of it.

`small` and `large` are of the middle step: what a training does now and then is left out, and told by `answers`, the
seconds that it takes five times to ask for answers that may repeat themselves (at 1.1 M and at 135 M parameters).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from chats import write_chats  # noqa: E402
from memory import make_model, words  # noqa: E402
from surrounding import surrounding  # noqa: E402

from bloomery.components.core import artifact  # noqa: E402
from bloomery.infra import surroundings  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
SMALL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
LARGE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""SmolLM2-135M's."""


def llama(folder: Path, vocabulary: int, **shape: int) -> Path:
    """A Llama of random weights, with the tokenizer of `memory.make_model`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bloomery.components.core.modelling import checkpoints

    make_model(folder, vocabulary)
    config = LlamaConfig.from_pretrained(folder)
    config.update({"num_key_value_heads": shape["num_attention_heads"], **shape})
    config.update({"head_dim": shape["hidden_size"] // shape["num_attention_heads"]})
    tokenizer = checkpoints.load_tokenizer(folder)
    torch.manual_seed(0)
    checkpoints.save(folder, LlamaForCausalLM(config), tokenizer)
    artifact.seal(folder, "model/1")
    return folder


def random_rows(count: int, vocabulary: int, longest: int) -> list[tuple[list[int], list[bool]]]:
    """Chats of a third to all of `longest` tokens; three fifths of each are an answer, which has a loss. So has the
    first token, which nothing foretells: then no answers are asked for now and then, five times a training of any
    length."""
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        length = chance.randint(longest // 3, longest)
        ids = [chance.randrange(6, vocabulary) for _ in range(length)]
        rows.append((ids, [at == 0 or at >= 2 * length // 5 for at in range(length)]))
    return rows


def clock(begins: list[float]) -> Any:
    """A trainer's callback that writes down when optimiser steps begin."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            begins.append(time.perf_counter())

    return Clock()


def middle(begins: Sequence[float]) -> float:
    """Seconds of the middle step; the first warms up."""
    taken = [after - before for before, after in zip(begins[1:], begins[2:], strict=False)]
    return statistics.median(taken)


def ours(model: Path, rows: list[tuple[list[int], list[bool]]], config: Any) -> tuple[Any, float, list[Any]]:
    """(the trainer when it is done, seconds a step, rows of each batch) of what sft runs."""
    from trl import SFTConfig, SFTTrainer

    from bloomery.components.core.modelling import batches, token_shards, training

    network, tokenizer = training.load(config, model)
    collate, seen, begins = batches.collator(tokenizer.pad_token_id), [], []

    def remembered(batch: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(batch)
        return collate(batch)

    with token_shards.tokenised(tokenizer, [], lambda: [token_shards.encoded(rows)]) as tokens:
        if config.packing:
            kind = batches.with_prompts(SFTTrainer, 0.0)
            data = tokens.packed(batches.bins(tokens.lengths, config.max_length, config.seed))
        else:
            kind, data = batches.grouped_by_length(SFTTrainer, tokens.lengths, config.seed), tokens.rows()
        trainer = training.train(
            config,
            (kind, SFTConfig),
            network,
            tokenizer,
            data,
            collator=remembered,
            callbacks=[clock(begins)],
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        )
    return trainer, middle(begins), seen[: trainer.state.global_step]


def bare(model: Path, batches_of_rows: list[Any], config: Any) -> tuple[float, list[float]]:
    """(seconds a step, losses) of a loop on the same batches."""
    import torch

    from bloomery.components.core.modelling import batches, schedules, training

    torch.use_deterministic_algorithms(False)
    network, tokenizer = training.load(config, model)
    network.train()
    collate = batches.collator(tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = len(batches_of_rows)
    course = functools.partial(
        schedules.factor, config.schedule, steps=steps, warmup=math.ceil(steps * config.warmup_fraction)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course)
    losses, begins = [], []
    for rows in batches_of_rows:
        begins.append(time.perf_counter())
        loss = network(**collate(rows), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return middle(begins), losses


def beside_a_loop(
    shape: dict[str, int], vocabulary: int, *, size: int, longest: int, steps: int, rounds: int
) -> dict[str, Any]:
    """`rounds` of `steps` of sft and of the bare loop, by turns; the first round warms up."""
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

    config = FineTuningConfig(learning_rate=1e-3, epochs=1, batch_size=size, max_length=longest)
    rows = random_rows(size * steps, vocabulary, longest)
    per_step = sum(len(ids) for ids, _ in rows) / steps
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        model = llama(Path(name) / "model", vocabulary, **shape)
        for _ in range(rounds + 1):
            trainer, mine, batches_of_rows = ours(model, rows, config)
            other, expected = bare(model, batches_of_rows, config)
            pairs.append((mine, other))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        **spread([other / mine for mine, other in pairs[1:]]),
        "tokens_per_second": round(per_step / statistics.median(mine for mine, _ in pairs[1:])),
        "of_the_loop": round(per_step / statistics.median(other for _, other in pairs[1:])),
        "loss_difference": float(f"{abs(losses[-1] - expected[-1]):.1e}"),
    }


def spread(values: Sequence[float], name: str = "ratio") -> dict[str, Any]:
    """Mean, under `name`, its standard error, and how many there are."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: round(statistics.mean(values), 3), "error": round(error, 3), "n": len(values)}


def small() -> dict[str, Any]:
    """1.1 M parameters, 16 chats of up to 128 tokens a step."""
    return beside_a_loop(SMALL, 2_048, size=16, longest=128, steps=41, rounds=4)


def large() -> dict[str, Any]:
    """135 M parameters, 4 chats of up to 128 tokens a step."""
    return beside_a_loop(LARGE, 49_152, size=4, longest=128, steps=6, rounds=4)


TOKENS_A_STEP = 153
"""Of packed rows, nearly full: TRL's eight chats a step have 150 on average."""

Chat = tuple[str, str]


def packing(num_chats: int = 1_200, rounds: int = 4) -> dict[str, Any]:
    """Chats of 8 to 60 tokens, most of them short, whose answers are their questions backwards."""
    chance = random.Random(0)
    pairs: list[Chat] = []
    for seed in range(num_chats + 200):
        asked = words(chance.choice([3, 3, 4, 4, 6, 8, 28]), 66, seed)
        pairs.append((asked, " ".join(reversed(asked.split()))))
    kinds = {"ours": packed, "trl": by_default}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        model = llama(Path(name) / "model", 2_048, **SMALL)
        for seed in range(rounds + 1):
            for kind, work in kinds.items():
                found[kind].append(work(model, pairs[:num_chats], pairs[num_chats:], seed))
    speeds = {kind: [speed for speed, _ in told[1:]] for kind, told in found.items()}
    return {
        **spread([mine / other for mine, other in zip(speeds["ours"], speeds["trl"], strict=True)]),
        "tokens_per_second": {kind: round(statistics.median(told)) for kind, told in speeds.items()},
        "loss": {kind: spread([loss for _, loss in told], "mean") for kind, told in found.items()},
    }


def trained_rows(tokenizer: Any, pairs: list[Chat]) -> list[tuple[list[int], list[bool]]]:
    """Chats as sft trains them."""
    from bloomery.components.core.data.chats import chat
    from bloomery.components.core.modelling import templates

    return [row for pair in pairs for row in templates.trained_rows(tokenizer, chat(*pair), "", "all_turns")]


def packed(model: Path, pairs: list[Chat], others: list[Chat], seed: int) -> tuple[float, float]:
    """(tokens a second, loss on `others`) of our packing."""
    from bloomery.components.core.modelling import checkpoints
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

    as_theirs = {"learning_rate": 1e-3, "epochs": 1, "schedule": "linear", "warmup_fraction": 0.0}
    config = FineTuningConfig(batch_size=1, max_length=TOKENS_A_STEP, packing=True, seed=seed, **as_theirs)
    tokenizer = checkpoints.load_tokenizer(model)
    rows = trained_rows(tokenizer, pairs)
    trainer, seconds, _ = ours(model, rows, config)
    tokens = sum(len(ids) for ids, _ in rows) / trainer.state.global_step
    return tokens / seconds, loss_on(trainer.model, tokenizer, others)


def by_default(model: Path, pairs: list[Chat], others: list[Chat], seed: int) -> tuple[float, float]:
    """(tokens a second, loss on `others`) of TRL's SFTTrainer, told no more than the learning rate and the seed."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bloomery.components.core.data.chats import message
    from bloomery.components.core.modelling import checkpoints

    network, tokenizer = checkpoints.load(model)
    begins: list[float] = []
    rows = [
        {"prompt": [message("user", asked)], "completion": [message("assistant", answer)]} for asked, answer in pairs
    ]
    trainer = SFTTrainer(
        model=network,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            learning_rate=1e-3,
            num_train_epochs=1,
            seed=seed,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[clock(begins)],
    )
    trainer.train()
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset) / trainer.state.global_step
    return tokens / middle(begins), loss_on(trainer.model, tokenizer, others)


def loss_on(network: Any, tokenizer: Any, pairs: list[Chat]) -> float:
    """Nats a token of answers, the end included."""
    from bloomery.components.core.modelling.likelihood import log_likelihoods

    rows = trained_rows(tokenizer, pairs)
    scores = log_likelihoods(network.eval(), [ids for ids, _ in rows], [marks for _, marks in rows])
    return float(-sum(nats for nats, _ in scores) / sum(count for _, count in scores))


def start(rounds: int = 3) -> dict[str, Any]:
    """Of 200 short chats and 1.1 M parameters, each time in a new process."""
    from bloomery.components.core.records import Prompt

    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama(folder / "model", 2_048, **SMALL)
        write_chats(folder / "chats", [(words(6, 2_048, seed), words(6, 2_048, -seed)) for seed in range(1, 201)])
        (folder / "tasks").mkdir()
        (folder / "tasks" / "tasks.json").write_text("{}")
        artifact.write_rows(folder / "tasks", "prompt/2", Prompt.table([]))
        artifact.seal(folder / "tasks", "tasks/1", rows=0)
        for number in range(rounds):
            journal = folder / f"{number}.jsonl"
            program = str(Path(sys.executable).with_name("bloomery"))
            settings = ["learning_rate=1e-3", "epochs=1", "batch_size=16", "max_length=64"]
            command = [program, "step", "sft", *(f"--set={setting}" for setting in settings)]
            command += [f"--{port.replace('_', '-')}={folder / port}" for port in ("chats", "tasks")]
            command += [f"--base-model={folder / 'model'}", f"--model={folder / f'out{number}'}"]
            began = time.time()
            subprocess.run(
                command, check=True, capture_output=True, env={**os.environ, "BLOOMERY_JOURNAL": str(journal)}
            )
            events = map(json.loads, journal.read_text().splitlines())
            seconds.append(next(event["time"] for event in events if event["event"] == "progress") - began)
    return spread(seconds, "seconds")


def grpo() -> dict[str, Any]:
    """What `grpo.py` finds."""
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("grpo.py")), "--steps", "24"], check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(Path(__file__).with_name("grpo.json").read_text())
    return found


def memory() -> dict[str, Any]:
    """Of `large`'s training, in a process of its own."""
    from bloomery.components.core.modelling import plan, shapes
    from bloomery.components.core.modelling.cards import Card
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

    config = FineTuningConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=128, num_validations=0)
    machine = Card("CPU", math.inf, 0, 0, is_gpu=False)
    with tempfile.TemporaryDirectory() as name:
        model = llama(Path(name) / "model", 49_152, **LARGE)
        own = f"import sys; sys.path.insert(0, {str(FILE.parent)!r}); import train; train.peak({str(model)!r})"
        done = subprocess.run([sys.executable, "-c", own], check=True, capture_output=True, text=True)
        planned = plan.of_training(shapes.read(model), plan.Training.of(config), machine).peak
    found = {"peak_bytes": int(done.stdout.splitlines()[-1]), "planned_bytes": round(planned)}
    return {**found, "error": round(found["planned_bytes"] / found["peak_bytes"] - 1, 3)}


def peak(model: str) -> None:
    """Train `model` for four steps of four chats of 128 tokens, and print the most bytes that were resident."""
    from plan import peak_bytes

    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

    config = FineTuningConfig(learning_rate=1e-3, epochs=1, batch_size=4, max_length=128, num_validations=0)
    rows = [(ids * 3, marks * 3) for ids, marks in random_rows(16, 49_152, 128)]
    ours(Path(model), [(ids[:128], marks[:128]) for ids, marks in rows], config)
    print(peak_bytes())


def answers() -> dict[str, Any]:
    """Seconds of the five times together, by the size of the model."""
    from bloomery.components.core.modelling import checkpoints, guards

    found = {}
    asked = [ids[:50] for ids, _ in random_rows(guards.NUM_ASKED, 2_048, 150)]
    for name, shape, vocabulary in (("1.1 M", SMALL, 2_048), ("135 M", LARGE, 49_152)):
        with tempfile.TemporaryDirectory() as folder:
            network, tokenizer = checkpoints.load(llama(Path(folder) / "model", vocabulary, **shape))
            trainer = SimpleNamespace(model=network, processing_class=tokenizer)
            began = time.perf_counter()
            for _ in range(5):
                guards._repetition(trainer, asked)
            found[name] = round(time.perf_counter() - began, 1)
    return {"seconds": found}


MEASURED = (small, large, packing, start, grpo, memory, answers)
PARTS: dict[str, Callable[[], dict[str, Any]]] = {part.__name__: part for part in MEASURED}


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    given = parser.parse_args().parts or list(PARTS)
    if unknown := sorted(set(given) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    for name in given:
        began = time.perf_counter()
        found[name] = {**PARTS[name](), "took": round(time.perf_counter() - began), **surrounding()}
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name]), flush=True)


if __name__ == "__main__":
    surroundings.enter()
    main()
