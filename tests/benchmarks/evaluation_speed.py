"""One model's evaluation against answering one prompt at a time.

    python tests/benchmarks/evaluation_speed.py MODEL TASKS [--limit 100]

MODEL is a checkpoint folder and TASKS a tasks/1 artifact, such as `pipeline/*/sft-3/model` and
`pipeline/*/preflight/tasks` of a run of the quickstart. Both ways answer the same prompts greedily with the same model
in the same process; loading is not counted. Writes `evaluation_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.evaluation.step import answer
from bloomery.infra import surroundings


def one_at_a_time(generator: Generator, tasks: Tasks, rows: list[dict], config: EvaluationConfig) -> list[str]:
    """The answers to `rows` in order, by a plain `model.generate` a prompt; of a perplexity task, a pass a text."""
    model, tokenizer = generator.model, generator.tokenizer
    answers = []
    for row in rows:
        if row["metric"] == "log_likelihood":
            ((nats, count),) = generator.log_likelihood([row["reference"]], max_length=config.max_length)
            answers.append(f"{nats / max(1, count):.4f}")
            continue
        chat = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            output = model.generate(
                **ids,
                max_new_tokens=tasks.configs[row["task"]].max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--limit", type=int, default=100, help="prompts of each evaluation set")
    arguments = parser.parse_args()
    generator, tasks = Generator.load(arguments.model), Tasks(arguments.tasks)
    config = EvaluationConfig(limit=arguments.limit)
    answer(generator, tasks, EvaluationConfig(limit=2))  # warm up

    def timed(work):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        return result, time.perf_counter() - wall, time.process_time() - cpu

    rows, wall, cpu = timed(lambda: answer(generator, tasks, config))
    alone, wall_alone, cpu_alone = timed(lambda: one_at_a_time(generator, tasks, rows, config))
    answered = [
        (row["response"], text) for row, text in zip(rows, alone, strict=True) if row["metric"] != "log_likelihood"
    ]
    found = {
        "prompts": len(rows),
        "answers": len(answered),
        "equal_answers": sum(a == b for a, b in answered),
        "seconds": round(wall, 2),
        "seconds_one_at_a_time": round(wall_alone, 2),
        "ratio": round(wall_alone / wall, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_one_at_a_time": round(cpu_alone, 2),
        "cpu_ratio": round(cpu_alone / cpu, 2),
        "torch_threads": torch.get_num_threads(),
    }
    (Path(__file__).parent / "evaluation_speed.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    surroundings.enter()
    main()
