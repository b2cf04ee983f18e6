"""Quantisation-aware training: the forward pass computes with the weights that the export will hold.

torchao 0.18's fake quantisers take a group's scale from its largest weight alone, where `rounding.scales` cuts it by
least squared error and keeps it in 16 bits. So the weights are rounded by the functions of the export.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.fine_tuning import fine_tune
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.core.scoring.validation import scorer
from bloomery.components.quantisation.config import QatConfig
from bloomery.components.quantisation.rounding import in_16_bits, rounded


def train(
    config: QatConfig, generator: Generator, layers: dict[str, Any], group_size: int, *, chats: Path, tasks: Path
) -> dict[str, float]:
    """Fine-tune the model of `generator` in place, for its `layers` to be packed next.

    Its weights become 32 bits wide: a step of a small learning rate is lost in 16. What is written takes the type of
    the model's config, as ever.
    Returns: what `fine_tune` measures, with every loss that of the quantised model.
    Raises:  as `fine_tune`; ModelError if the chat template trains nothing or does not end a turn.
    """
    network = generator.model.float()
    checkpoints.check_template(generator.tokenizer, Path(network.name_or_path))
    with fake_quantised(network, layers, group_size):
        known = Tasks(tasks)
        known.check_named(config.tasks, "quantisation.qat.tasks")
        _, metrics = fine_tune(
            config,
            network,
            generator.tokenizer,
            chats=chats,
            texts=known.texts_to_read(config.tasks, is_general=False),
            replayed=known.texts_to_read(config.tasks, is_general=True),
            watched=known.validation_chats(config.tasks),
            where="quantisation.qat",
            score=scorer(known, generator.tokenizer, config.tasks, config.best_questions, "quantisation.qat"),
        )
    network.eval()
    return metrics


@contextlib.contextmanager
def fake_quantised(network: Any, layers: dict[str, Any], group_size: int) -> Iterator[None]:
    """While it lasts, each weight of `network` is read as the export stores it: those of `layers`, and a head tied to
    one, in four bits, all others in 16."""
    packed = {id(layer.weight) for layer in layers.values()}
    weights = [
        (module, name, group_size if id(weight) in packed else None)
        for module in network.modules()
        for name, weight in module.named_parameters(recurse=False)
    ]
    for module, name, size in weights:
        parametrize.register_parametrization(module, name, _AsStored(size))
    try:
        yield
    finally:
        for module, name, _ in weights:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


class _AsStored(torch.nn.Module):
    """A weight as a loader of the export gets it back; `group_size` None: one that is not packed."""

    def __init__(self, group_size: int | None) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return _StraightThrough.apply(weight, self.group_size)


class _StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as it comes, for rounding has none (Bengio et al. 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
        return in_16_bits(weight).to(weight.dtype) if group_size is None else rounded(weight, group_size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
