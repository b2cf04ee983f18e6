"""What every trainer of ours shares: the settings, the weights that it trains, and the run itself."""

from __future__ import annotations

import functools
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bloomery.components.core import processes, tracking
from bloomery.components.core.config import Config, Seed
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import (
    adapters,
    batches,
    cards,
    checkpoints,
    guards,
    literature,
    loss_tiles,
    optimisers,
    schedules,
    sharding,
    soft_prompts,
    wholeness,
    zeros,
)
from bloomery.components.core.modelling.adapters import AdapterConfig, Trained
from bloomery.components.core.modelling.context import TooLong
from bloomery.components.core.modelling.optimisers import Optimizer
from bloomery.components.core.modelling.resuming import CheckpointConfig, Keeper, Resuming
from bloomery.components.core.modelling.schedules import Schedule

logger = logging.getLogger(__name__)


class TrainingConfig(Config):
    """Settings that every training step has."""

    METHOD: ClassVar[Literal["cpt", "fine_tuning", "preference", "reward_model", "reinforcement"]] = "fine_tuning"
    """What the literature is asked about: see `literature.MOST_EPOCHS`."""
    TAKES_SOFT_PROMPT: ClassVar[bool] = False
    """Whether every row is a chat, in which a soft prompt stands, and nothing but the trained model reads it."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate; differs by model and method, so it has no default."""
    optimizer: Optimizer = "adamw"
    """AdamW, or Muon at the same size of step: match the optimiser that pre-trained the model (arXiv 2502.16982,
    section 3.5); at 1.1 M parameters Muon learnt the quickstart's questions 12 points better in the same epochs. RAdam
    (1908.03265), Adafactor (1804.04235: little memory); of bitsandbytes AdamW in 8 bits (2110.02861), also paged, and
    Lion (2302.06675: a learning rate 3 to 10 times lower than AdamW's)."""
    epochs: float = Field(gt=0, le=10_000)
    """Passes over the data; differs by the amount of data, so it has no default."""
    batch_size: int = Field(default=32, gt=0)
    """Sequences per forward pass of a device. An optimiser step has as many times that as there are accumulated passes
    and devices that share the training (`resources.accelerators`); an epoch's last step is filled up with its first
    rows where they do not divide."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Forward passes per optimiser step."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the optimiser steps in which the learning rate rises linearly."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up: cosine to zero (Chinchilla, 2203.15556, appendix B), or as
    `schedules.factor` says of the others."""
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
    """Train an adapter; none: the weights themselves."""
    trained: Trained = "all"
    """Of the weights themselves: `all`; `bias`: the biases alone (BitFit, 2106.10199); `head`: the output head alone; a
    number: so many of the last layers, and the head."""
    keep_zeros: bool = False
    """Weights of the layers that are zero at the start, as a stage `pruning` with `sparsity` writes them, stay zero."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time (1604.06174)."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Of a training that is going on, so that one that was killed goes on from there."""
    seed: Seed = 17
    """Seed of data order and dropout."""

    @model_validator(mode="after")
    def _trains_one_thing(self) -> TrainingConfig:
        if self.adapter and self.trained != "all":
            raise ValueError(f"trained: found {self.trained}, beside an adapter, which leaves all weights as they are")
        if self.adapter and self.keep_zeros:
            raise ValueError("keep_zeros: an adapter is added to every weight when it is merged; train without one")
        if self.adapter and self.adapter.is_soft:
            self._fits_a_soft_prompt(self.adapter.kind)
        return self

    def unshardable(self) -> str:
        """The setting that wants whole weights in each process, and what to set, for a recipe that shares them out
        (`resources.sharding`); empty if there is none."""
        if self.keep_zeros:
            return "keep_zeros: found true, expected false"
        return sharding.problem(self.optimizer, self.adapter)

    def _fits_a_soft_prompt(self, kind: str) -> None:
        if not self.TAKES_SOFT_PROMPT:
            raise ValueError(
                f"adapter.kind: {kind} is learnt by tokens at the start of chats, which sft, dpo and grpo train alone; "
                "take lora"
            )
        if self.optimizer == "muon":
            raise ValueError(f"optimizer: muon is for matrices of layers, and {kind} trains embeddings; take adamw")


def check_whole(too_long: TooLong, kind: str) -> None:
    """Raise ValueError if a soft prompt, an adapter of `kind`, would be cut off a long chat."""
    if too_long == "truncate_left":
        raise ValueError(
            f"too_long: truncate_left cuts the beginning of a chat, which is where adapter.kind {kind} has its tokens; "
            "expected drop or error"
        )


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


FEW_STEPS = 20
"""Optimiser steps below which a training is warned of; a reading aid. 300 chats and the default batch of 32 make 16 in
two epochs, which taught a model of 135 M parameters none of their answers, where 124 taught it all."""
LOSS_TILE_BYTES = 2**26
"""64 MiB: the fp32 logits of one tile of TRL's loss on a CPU."""


def _bound_loss(network: Any) -> None:
    """Let TRL's loss, where it runs without Triton, score the tokens that have a loss alone, fewer at a time the
    larger the vocabulary, and in fewer passes.

    TRL 1.16 takes 4,096 tokens x 32,768 columns: tiles of 512 MiB, so that a step of a model of any size takes 4 GB. It
    also scores what has no loss, for the sake of devices that compile each shape; of the questions of chats that is
    most of the head's work, a quarter of that of a model of 135 M parameters.
    """
    import torch
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    if not torch.cuda.is_available():
        columns = min(network.config.get_text_config().vocab_size, 32_768)
        chunked_logprob.TOKEN_CHUNK_SIZE = max(1, min(4_096, LOSS_TILE_BYTES // (4 * columns)))
        utils._use_triton = lambda device: True  # which decides there only what is scored
        loss_tiles.install()


def load(config: TrainingConfig, path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the checkpoint folder `path`, to be trained at `config.precision`; with a soft prompt both
    have its tokens.

    Raises: ModelError if it cannot be trained, or it cannot be proven which tokens of a chat have a loss.
    """
    checkpoints.check(path, to_train=True)
    if config.adapter and config.adapter.kind == "qlora":
        wholeness.check(path)
        return adapters.load_in_4_bits(path), checkpoints.load_tokenizer(path)
    network, tokenizer = checkpoints.load(path, dtype=weights_dtype(config, path))
    if (soft := config.adapter) and soft.is_soft:
        encoded = soft.kind == "p_tuning"
        tokenizer = soft_prompts.added(
            network, tokenizer, soft.tokens, text=soft.text, encoded=encoded, seed=config.seed
        )
    return network, tokenizer


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
        if processes.is_sharded(processes.count()):
            wanted //= processes.count()
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

    return float(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else cards.free_bytes()


def train(
    config: TrainingConfig,
    kind: tuple[type, type],
    network: Any,
    tokenizer: Any,
    rows: Any,
    *,
    collator: Any = None,
    validation: Any = None,
    evaluations: int = 0,
    callbacks: Sequence[Any] = (),
    keepers: Sequence[Keeper] = (),
    **settings: Any,
) -> Any:
    """Train `network` on `rows`, as its adapter if `config` has one, and return the trainer when it is done.

    `kind` is a trainer of TRL and the class of its arguments, which take `settings` too; `collator` makes batches,
    none: the trainer's own; `evaluations` is the number of evenly spread passes over the rows of `validation`;
    `keepers` have state that a checkpoint holds. Rows come within `config.max_length`: the trainer cuts none. Of a
    prompt each of its `num_generations` answers counts as a row. A
    training that was killed goes on from its last checkpoint. Of the processes that share a training only the first
    comes back, with the whole model.
    Raises: DivergedError before a non-finite step is taken; ConfigError if the weights are to be shared out and a
            setting of `config` wants them whole.
    """
    import torch

    is_sharded = processes.is_sharded(processes.count())
    if is_sharded and (problem := config.unshardable()):
        raise ConfigError(f"{problem}, where the processes share out the weights ({processes.SHARDING}: full)")

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nobody reads memory before writing it; filling it took 45 % of a training step on two cores.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _bound_loss(network)
    adapters.freeze(network, config.trained)
    resuming = Resuming(config.checkpoint, keepers)
    trainer_class, arguments_class = kind
    if is_sharded:
        trainer_class = sharding.shared_out(trainer_class)
    arguments = arguments_class(
        output_dir=resuming.folder or tempfile.gettempdir(),  # where no checkpoint is kept nothing is written
        **_arguments(config, num_rows=len(rows) * settings.get("num_generations", 1), evaluations=evaluations),
        **({"max_length": None} if hasattr(arguments_class, "max_length") else {}),
        **(sharding.ARGUMENTS if is_sharded else {}),
        **settings,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # of several that are seen it would make one, by torch's DataParallel
    trainer = batches.validated_alike(guards.watched(trainer_class))(
        model=network,
        processing_class=tokenizer,
        train_dataset=rows,
        **({"data_collator": collator} if collator else {}),
        eval_dataset=validation if evaluations else None,
        peft_config=adapters.peft_config(config.adapter, network),
        callbacks=[*callbacks, *([zeros.kept()] if config.keep_zeros else [])],
        args=arguments,
    )
    adapters.in_32_bits(trainer.model)
    adapters.remember_start(trainer.model)
    trainer.optimizer = optimisers.made(config.optimizer, trainer.model, config.learning_rate, config.weight_decay)
    steps, warmup = trainer.args.max_steps, trainer.args.warmup_steps
    course = functools.partial(schedules.factor, config.schedule, steps=steps, warmup=warmup)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.create_optimizer(), course)
    guards.watch(trainer, rows)
    trainer.add_callback(resuming.callback())  # the last, which sees what others want and may end there
    tracking.show("example", guards.example(tokenizer, rows[0]))
    literature.warn(config, network.num_parameters())
    if steps < FEW_STEPS:
        logger.warning("%d optimiser steps in all teach little; more epochs or a smaller batch_size make more", steps)
    resuming.train(trainer)
    if is_sharded:
        trainer.make_whole()
    processes.leave()
    return trainer


def _arguments(config: TrainingConfig, *, num_rows: int, evaluations: int) -> dict[str, Any]:
    """Keyword arguments of transformers' TrainingArguments, and of TRL's subclasses, for `config`."""
    import torch

    per_step = config.batch_size * config.gradient_accumulation_steps * processes.count()
    steps = max(1, math.ceil(math.ceil(num_rows / per_step) * config.epochs))
    on_gpu = torch.cuda.is_available()
    return {
        "learning_rate": config.learning_rate,
        "max_steps": steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "warmup_steps": min(math.ceil(steps * config.warmup_fraction), steps - 1),  # whose first has a rate of 0
        "optim": optimisers.name_of(config.optimizer),
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
