"""A step of `grpo` beside one of TRL's own GRPOTrainer with the same settings, on the same model and prompts.

    python tests/benchmarks/grpo.py [--vocabulary 2048] [--steps 8] [--rounds 2]

Both sample 8 answers to each of 8 prompts a step, up to 32 tokens, are rewarded by the same function and hold a
reference (beta 0.04); they take turns. Ours includes what watches a training. Loading is not counted. Writes
`grpo.json`: seconds and CPU seconds a step, the least of the rounds, and the ratio of TRL's to ours (above 1: ours is
faster).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import make_model

from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import templates, training
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.grpo.rewards import Rewards
from bloomery.components.grpo.trainer import arguments, trainer_for
from bloomery.infra import surroundings

ANSWER, PER_STEP = 32, 8


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


class Even(Rewards):
    """`even`, as the rewards of our trainer."""

    def __init__(self) -> None: ...

    def chosen(self) -> list[Any]:
        """That alone."""
        return [(even, 1.0)]


def settings(steps: int) -> GrpoConfig:
    """Those of both."""
    return GrpoConfig(learning_rate=1e-4, epochs=steps, batch_size=8 * PER_STEP, max_length=256, warmup_fraction=0.0)


def ours(model: Path, questions: list[str], steps: int) -> Any:
    """What trains, and is not begun yet."""
    from datasets import Dataset

    config = settings(steps)
    network, tokenizer = training.load(config, model)
    rows = [{"prompt": templates.prompt_tokens(tokenizer, chat(text))} for text in questions]
    kind = trainer_for(config, Even())
    return lambda: training.train(
        config, kind, network, tokenizer, Dataset.from_list(rows), **arguments(config, Even(), ANSWER)
    )


def theirs(model: Path, questions: list[str], steps: int) -> Any:
    """The same by TRL alone."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = settings(steps)
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=even,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions]),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            per_device_train_batch_size=config.batch_size,
            num_generations=config.num_generations,
            max_completion_length=ANSWER,
            beta=config.beta,
            learning_rate=config.learning_rate,
            max_steps=steps,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=steps,
        ),
    )
    return trainer.train


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=2_048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    chance = random.Random(0)
    questions = [" ".join(f"w{chance.randrange(given.vocabulary - 4)}" for _ in range(12)) for _ in range(PER_STEP)]
    least: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, given.vocabulary)
        for _ in range(given.rounds):
            for name, make in (("ours", ours), ("trl", theirs)):
                work = make(model, questions, given.steps)
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                taken = [time.perf_counter() - wall, time.process_time() - cpu]
                least[name] = [min(pair) for pair in zip(taken, least.get(name, taken), strict=True)]
    found = {
        "vocabulary": given.vocabulary,
        "seconds": {name: round(wall / given.steps, 3) for name, (wall, _) in least.items()},
        "cpu_seconds": {name: round(cpu / given.steps, 3) for name, (_, cpu) in least.items()},
        "ratio": round(least["trl"][0] / least["ours"][0], 2),
        "cpu_ratio": round(least["trl"][1] / least["ours"][1], 2),
    }
    (Path(__file__).parent / "grpo.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    surroundings.enter()
    main()
