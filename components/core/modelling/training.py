"""What every trainer of ours shares: the settings, the weights that it trains, and the run itself."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from bloomery.components.core import tracking
from bloomery.components.core.config import Config
from bloomery.components.core.modelling import adapters, checkpoints, guards, literature, optimisers
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.context import TooLong
from bloomery.components.core.modelling.optimisers import Optimizer
from bloomery.components.core.modelling.resuming import CheckpointConfig, Keeper, Resuming

logger = logging.getLogger(__name__)


class TrainingConfig(Config):
    """Settings that every training step has."""

    METHOD: ClassVar[Literal["cpt", "fine_tuning", "preference", "reward_model", "reinforcement"]] = "fine_tuning"
    """What the literature is asked about: see `literature.MOST_EPOCHS`."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate; differs by model and method, so it has no default."""
    optimizer: Optimizer = "adamw"
    """AdamW, or Muon at the same size of step. Match the optimiser that pre-trained the model (arXiv 2502.16982,
    section 3.5); at 1.1 M parameters Muon learnt the quickstart's questions 12 points better in the same epochs."""
    epochs: float = Field(gt=0)
    """Passes over the data; differs by the amount of data, so it has no default."""
    batch_size: int = Field(default=32, gt=0)
    """Sequences per optimiser step and device, before accumulation."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Forward passes per optimiser step."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the optimiser steps in which the learning rate rises linearly."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up; cosine to zero (Chinchilla, 2203.15556, appendix B)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay; fine-tuning recipes of the TRL and alignment-handbook projects use none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the weights while they are trained; what is written has the checkpoint's own dtype. `auto`: 32 bits, with the
    arithmetic in bfloat16 on a GPU, so that no small step is lost; under an adapter on a GPU the frozen weights stay as
    they are. `fp32`: arithmetic too. `bf16`: weights and optimiser in 16 bits, a quarter of the memory; of steps at
    1e-5 most are rounded away (15 % of the weights had changed after 8, in 32 bits all)."""
    max_length: int = Field(gt=1)
    """Longest sequence in tokens; bounds the memory of a step, so it has no default."""
    adapter: AdapterConfig | None = None
    """Train a low-rank adapter; none: all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time (1604.06174)."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Of a training that is going on, so that one that was killed goes on from there."""
    seed: int = 17
    """Seed of data order and dropout."""


def warn_of_too_long(count: int, total: int, rows: str, max_length: int, too_long: TooLong) -> None:
    """Tell how many rows do not fit, as a warning above 5 %."""
    if count:
        done = "cut on the left" if too_long == "truncate_left" else "left out"
        told = logger.warning if count > 0.05 * total else logger.info
        told(
            "%d of %d %s (%.1f %%) are longer than %d tokens: %s",
            count,
            total,
            rows,
            100 * count / total,
            max_length,
            done,
        )


LOSS_TILE_BYTES = 2**26
"""64 MiB: the fp32 logits of one tile of TRL's loss on a CPU. Its torch code holds some eight of that size at once."""


def _bound_loss(network: Any) -> None:
    """Let TRL's loss, where it runs without Triton, take fewer tokens at a time the larger the vocabulary.

    TRL 1.16 takes 4,096 tokens x 32,768 columns: tiles of 512 MiB, so that a step of a model of any size takes 4 GB.
    """
    import torch
    from trl.kernels import chunked_logprob

    if not torch.cuda.is_available():
        columns = min(network.config.get_text_config().vocab_size, 32_768)
        chunked_logprob.TOKEN_CHUNK_SIZE = max(1, min(4_096, LOSS_TILE_BYTES // (4 * columns)))
def load(config: TrainingConfig, path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the checkpoint folder `path`, to be trained at `config.precision`.

    Raises: ModelError if it cannot be trained, or it cannot be proven which tokens of a chat have a loss.
    """
    checkpoints.check(path, to_train=True)
    return checkpoints.load(path, dtype=weights_dtype(config, path))


def weights_dtype(config: TrainingConfig, path: Path) -> str:
    """The dtype, as torch names it, in which the weights of `path` are trained; what is not as stored is logged."""
    import torch

    own = checkpoints.own_dtype(path)
    if config.precision != "auto":
        chosen = {"fp32": "float32", "bf16": "bfloat16"}[config.precision]
    elif own == "float32" or (config.adapter and torch.cuda.is_available()):
        chosen = own
    else:
        # A weight, its gradient and AdamW's two moments; under an adapter the weight alone.
        wanted, free = checkpoints.num_parameters(path) * (4 if config.adapter else 16), _free_bytes()
        chosen = "float32" if wanted <= free else own
        if chosen == own:
            logger.warning("%.1f GB would train in 32 bits and %.1f are free", wanted / 1e9, free / 1e9)
    if chosen != own:
        logger.info("the weights are %s in the checkpoint, trained as %s and written as %s", own, chosen, own)
    if chosen != "float32" and config.adapter is None:
        logger.warning(
            "all weights are trained in %s: most steps of a small learning rate are rounded away; use an adapter, a "
            "GPU with more memory, or precision: fp32",
            chosen,
        )
    return chosen


def _free_bytes() -> float:
    """Memory that training may take: of the accelerator, or of this machine and its control group."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    free = math.inf
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable:"):
            free = float(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, float(most) - float(used.read_text()))
    return free


def train(
    config: TrainingConfig,
    kind: tuple[type, type],
    network: Any,
    tokenizer: Any,
    rows: Any,
    *,
    validation: Any = None,
    evaluations: int = 0,
    callbacks: Sequence[Any] = (),
    keepers: Sequence[Keeper] = (),
    **settings: Any,
) -> Any:
    """Train `network` on `rows`, as its adapter if `config` has one, and return the trainer when it is done.

    `kind` is a trainer of TRL and the class of its arguments, which take `settings` too; `evaluations` is the number of
    evenly spread passes over the rows of `validation`; `keepers` have state that a checkpoint holds. Rows come within
    `config.max_length`: the trainer cuts none. Of a prompt each of its `num_generations` answers counts as a row. A
    training that was killed goes on from its last checkpoint.
    Raises: DivergedError before a non-finite step is taken.
    """
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nobody reads memory before writing it; filling it took 45 % of a training step on two cores.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _bound_loss(network)
    resuming = Resuming(config.checkpoint, keepers)
    trainer_class, arguments_class = kind
    trainer = guards.watched(trainer_class)(
        model=network,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=validation if evaluations else None,
        peft_config=adapters.peft_config(config.adapter, network),
        callbacks=[*callbacks, resuming.callback()],
        args=arguments_class(
            output_dir=resuming.folder or tempfile.mkdtemp(prefix="bloomery-"),
            **_arguments(config, num_rows=len(rows) * settings.get("num_generations", 1), evaluations=evaluations),
            **({"max_length": None} if hasattr(arguments_class, "max_length") else {}),
            **settings,
        ),
    )
    trainer.optimizer = optimisers.chosen(config.optimizer, trainer.model, config.learning_rate, config.weight_decay)
    guards.watch(trainer, rows)
    tracking.show("example", guards.example(tokenizer, rows[0]))
    literature.warn(config, network.num_parameters())
    resuming.train(trainer)
    return trainer


def _arguments(config: TrainingConfig, *, num_rows: int, evaluations: int) -> dict[str, Any]:
    """Keyword arguments of transformers' TrainingArguments, and of TRL's subclasses, for `config`."""
    import torch

    per_step = config.batch_size * config.gradient_accumulation_steps
    steps = max(1, math.ceil(math.ceil(num_rows / per_step) * config.epochs))
    on_gpu = torch.cuda.is_available()
    return {
        "learning_rate": config.learning_rate,
        "max_steps": steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "warmup_steps": math.ceil(steps * config.warmup_fraction),
        "lr_scheduler_type": config.schedule,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "bf16": on_gpu and config.precision != "fp32",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // 40),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluations else "no",
        "eval_steps": max(1, steps // evaluations) if evaluations else None,
    }


def final_loss(history: list[dict[str, Any]]) -> float:
    """Mean training loss over the last tenth of the logged intervals, in nats per trained token."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else float("nan")
