"""What watches a training while it runs: the guard against a non-finite step, and the reporter of the curves."""

from __future__ import annotations

import time
from typing import Any

from bloomery.components.core import tracking
from bloomery.components.core.errors import DivergedError


def callbacks() -> list[Any]:
    """Callbacks of every trainer: the guard and the reporter."""
    import torch
    from transformers import TrainerCallback

    class Guard(TrainerCallback):
        """Ends the run before the optimiser takes a non-finite step."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
            if not torch.isfinite(norm):
                raise DivergedError(
                    f"the gradient is not finite at optimiser step {state.global_step + 1}; the weights were "
                    f"not changed by it. "
                    "Lower learning_rate, raise warmup_fraction or look at the batch"
                )

    class Reporter(TrainerCallback):
        """Sends the curves to the tracker, with tokens per second over the last interval."""

        def __init__(self) -> None:
            self.last: tuple[float, float] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for entry in state.log_history:  # of a training that goes on, told by a process that is no more
                tracking.log({**_told(entry), "num_steps": float(state.max_steps)}, entry["step"])

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            kept = _told(logs or {})
            now, tokens = time.perf_counter(), kept.get("num_tokens", 0.0)
            if self.last is not None and tokens > self.last[1]:
                kept["tokens_per_second"] = round((tokens - self.last[1]) / (now - self.last[0]), 1)
            if tokens:
                self.last = (now, tokens)
            if kept:
                tracking.log({**kept, "num_steps": float(state.max_steps)}, state.global_step)

    return [Guard(), Reporter()]


def _told(logs: dict[str, Any]) -> dict[str, float]:
    """The measures of a log entry of the trainer that are told."""
    others = ("_runtime", "per_second", "epoch", "step")
    kept = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
    kept = {name: value for name, value in kept.items() if name.split("_")[0] not in ("train", "total")}
    return {name: value for name, value in kept.items() if not name.endswith(others)}
