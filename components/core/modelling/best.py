"""The best weights of a training: kept in memory, by the validation loss or by what answers are worth."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import processes, tracking
from bloomery.components.core.modelling.sharding import own_part

logger = logging.getLogger(__name__)

BEST = "best-{}.pt"
"""In a checkpoint: the best weights so far, or a process's part of them."""


class Kept(NamedTuple):
    """The best validation so far."""

    loss: float = math.inf
    score: float = -math.inf
    """Where weights are scored."""
    step: int = 0
    since: int = 0
    """Validations since."""
    weights: dict[str, Any] = {}  # noqa: RUF012


class Best:
    """Keeps a copy, in memory, of the trainable weights with the lowest validation loss; with `score` of those with the
    highest score, of equal ones with the lowest loss. When training ends they are put back, if `is_taken`."""

    def __init__(
        self, patience: int | None, score: Callable[[Any], float] | None = None, *, is_taken: bool = True
    ) -> None:
        """`score` tells what the answers of a model, in evaluation mode, are worth."""
        self.patience = patience or math.inf
        self.is_taken = is_taken
        self._score = score
        self.kept = Kept()
        """Taken in whole: a validation may be left at any moment, to be done again."""
        self.seconds = 0.0
        """Time that scoring took."""

    def callback(self) -> Any:
        """The trainer's callback that looks at every validation."""
        from transformers import TrainerCallback

        keeper = self

        class Keep(TrainerCallback):
            def on_evaluate(
                self,
                args: Any,
                state: Any,
                control: Any,
                metrics: dict[str, float] | None = None,
                model: Any = None,
                **_: Any,
            ) -> None:
                loss = (metrics or {}).get("eval_loss", math.inf)
                score = keeper._scored(model, state)
                kept = keeper.kept
                if (score, -loss) > (kept.score, -kept.loss):
                    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
                    weights = {name: own_part(weight).clone() for name, weight in trained}
                    keeper.kept = Kept(loss, score, state.global_step, 0, weights)
                    return
                keeper.kept = kept._replace(since=kept.since + 1)
                if keeper.kept.since >= keeper.patience:
                    what = "validation loss has not fallen" if keeper._score is None else "score has not risen"
                    logger.info("the %s %d times: training ends early", what, keeper.kept.since)
                    control.should_training_stop = True

            def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                if keeper.is_taken:
                    keeper.restore(model)

        return Keep()

    def _scored(self, model: Any, state: Any) -> float:
        """The score of `model` as it is, which leaves no trace in the course of its training; 0 where none is asked."""
        if self._score is None:
            return 0.0
        import torch

        begun, was_training = time.monotonic(), model.training
        model.eval()
        with torch.random.fork_rng():
            score = self._score(model)
        model.train(was_training)
        seconds = time.monotonic() - begun
        self.seconds += seconds
        logger.info("validation score at optimiser step %d: %.3f (%.1f s)", state.global_step, score, seconds)
        # In the trainer's history too, which a training that goes on tells again.
        state.log_history.append({"validation_score": score, "step": state.global_step})
        tracking.log({"validation_score": score, "num_steps": float(state.max_steps)}, state.global_step)
        return score

    def save(self, folder: Path) -> None:
        """Write what is kept into a checkpoint: one process all of it, or each its part."""
        import torch

        if processes.rank() == _writer():
            torch.save({"seconds": self.seconds, **self.kept._asdict()}, folder / BEST.format(_writer()))

    def load(self, folder: Path) -> None:
        """Take it out of one."""
        import torch

        told = torch.load(folder / BEST.format(_writer()), weights_only=True)
        self.seconds = told.pop("seconds")
        self.kept = Kept(**told)

    def restore(self, model: Any) -> None:
        """Put the kept weights back."""
        for name, weight in model.named_parameters():
            if name in self.kept.weights:
                own_part(weight).copy_(self.kept.weights[name])


def _writer() -> int:
    """The process that writes what this one holds."""
    return processes.rank() if processes.is_sharded(processes.count()) else 0
