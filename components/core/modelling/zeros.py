"""Weights that a sparse model has at zero, kept there while it is trained."""

from __future__ import annotations

from typing import Any

from bloomery.components.core.errors import ConfigError


def kept() -> Any:
    """A trainer's callback that puts every weight of the layers' matrices which is zero at the start back to zero after
    each optimiser step (how lottery tickets are trained: arXiv 1803.03635). A byte a weight of a sparse matrix is held.

    Raises: ConfigError, when training begins, if no trained matrix has a zero.
    """
    import torch
    from transformers import TrainerCallback

    class Zeros(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            head = model.get_output_embeddings()
            matrices = [
                module.weight
                for module in model.modules()
                if isinstance(module, torch.nn.Linear) and module is not head and module.weight.requires_grad
            ]
            self.zeros = [(weight, weight.detach() == 0) for weight in matrices if bool((weight == 0).any())]
            if not self.zeros:
                raise ConfigError(
                    "keep_zeros: no trained matrix of the layers has a weight that is zero; leave it out, or let a "
                    "stage pruning with `sparsity` stand before it"
                )

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for weight, is_zero in self.zeros:
                weight.data.masked_fill_(is_zero, 0)

    return Zeros()
