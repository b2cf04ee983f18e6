"""What watches a training while it runs: a step that is not finite is not taken, and what goes wrong quietly is named
as soon as it shows."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from bloomery.components.core import processes, tracking
from bloomery.components.core.errors import DivergedError
from bloomery.components.core.modelling.generation import left_padded, without_routers
from bloomery.components.core.modelling.token_shards import IGNORED

logger = logging.getLogger(__name__)

WINDOW = 4
"""Logged intervals, of some forty in a run, that are averaged before losses are compared."""
RISEN = 1.3
"""A loss this many times its lowest average, and above it by three times what it changes by from one interval to the
next, is rising. A reading aid of our own."""
EXPLODED = 10.0
"""A gradient norm this many times the median of those before, twice in a row, is exploding."""
NUM_ASKED, NUM_ANSWERED = 4, 64
"""Rows whose beginning is answered now and then, and tokens of an answer."""
REPEATING = 0.5
"""Share of the 4-grams of an answer that it has said before (seq-rep-4, arXiv 1908.04319, section 4; 0.006 of human
text, 0.44 of what GPT-2's kind of models said greedily, table 2) from which it is repeating itself."""


STEPS_UNTIL_REACHED = 8
"""Optimiser steps in which the gradient has to reach whatever is trained. Of LoRA's first matrix it is zero until the
second has changed, which a warm-up from zero puts off to the third step."""


def watched(trainer: type) -> type:
    """The `trainer` class, which ends the run before the optimiser takes a step that is not finite, and names the rows
    of its forward passes. It asks the norm by which gradients are clipped, so that they are read once."""
    import torch

    class Watched(trainer):  # type: ignore[misc]
        passes: list[tuple[Any, Any]] = []  # noqa: RUF012

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            if isinstance(inputs, list):  # prompts, which the trainer answers itself
                rows: Any = [torch.tensor(row["prompt"]) for row in inputs]
            else:
                rows = next((value for name, value in inputs.items() if name.endswith("input_ids")), None)
            loss = super().training_step(model, inputs, *rest, **named)
            self.passes = [*self.passes, (rows, loss)]
            return loss

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            if not math.isfinite(norm):
                if broken := _not_finite(model):
                    raise DivergedError(
                        f"the weights are not finite before optimiser step {self.state.global_step + 1}: {broken} "
                        "holds NaN or infinity; start from a whole checkpoint"
                    )
                raise DivergedError(
                    f"the gradient is not finite at optimiser step {self.state.global_step + 1}; the weights were not "
                    f"changed by it. {_named(self)}. Lower learning_rate, raise warmup_fraction or look at the batch"
                )
            self.passes = []
            return norm

    return Watched


def _not_finite(model: Any) -> str:
    """The first weight of `model` that is not finite, or ''; of weights that are shared out, whose processes have to
    agree on what they say, none is looked at."""
    whole = ((name, own) for name, own in model.named_parameters() if not hasattr(own, "to_local"))
    return next((name.removeprefix("module.") for name, own in whole if not own.isfinite().all()), "")


def watch(trainer: Any, rows: Any) -> None:
    """Let what `trainer` does on `rows` be looked at while it trains, and its curves be told."""
    from transformers import TrainerCallback

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

    class Answers(TrainerCallback):
        """Warns once of answers that repeat themselves."""

        def __init__(self) -> None:
            self.is_told = False
            self.asked = _asked(rows)
            self.at_first = 1.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.at_first = _repetition(trainer, self.asked)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not self.is_told and state.global_step % max(1, math.ceil(state.max_steps / 4)) == 0:
                share = _repetition(trainer, self.asked)
                if share > max(REPEATING, self.at_first + 0.25):
                    self.is_told = True
                    told = "at optimiser step %d answers repeat themselves: %.0f%% of their 4-grams are repeats"
                    logger.warning(told, state.global_step, 100 * share)

    class Reached(TrainerCallback):
        """Warns of what is trained and has had no gradient when the training has begun: it learns nothing."""

        def __init__(self) -> None:
            trained = ((name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad)
            # Of weights that are shared out each process sees a part.
            self.trained = {name: weight for name, weight in trained if not hasattr(weight, "to_local")}
            self.waiting = list(self.trained)
            self.is_reinforced = "prompt" in rows[0]
            self.num_steps = 0

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not self.waiting or (self.is_reinforced and not any(map(self._is_reached, self.trained))):
                return  # of answers that are all worth the same no gradient is due
            self.waiting = [name for name in self.waiting if not self._is_reached(name)]
            self.num_steps += 1
            if self.waiting and self.num_steps == STEPS_UNTIL_REACHED:
                logger.warning(unreached(self.waiting, len(self.trained)))
                self.waiting = []

        def _is_reached(self, name: str) -> bool:
            grad = self.trained[name].grad
            return grad is not None and bool(grad.any())

    for callback in (Reporter(), alarm(_of_curves), Answers(), Reached()):
        trainer.add_callback(callback)


def alarm(look: Callable[[Sequence[dict[str, float]]], Mapping[str, str]]) -> Any:
    """A trainer's callback that warns, once of each kind, of what `look` tells by kind of the logged intervals."""
    from transformers import TrainerCallback

    class Alarm(TrainerCallback):
        def __init__(self) -> None:
            self.warned: set[str] = set()

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for kind, told in look(state.log_history).items():
                if told and kind not in self.warned:
                    self.warned.add(kind)
                    logger.warning("at optimiser step %d %s", state.global_step, told)

    return Alarm()


def rising(losses: Sequence[float]) -> str:
    """What is told of a loss that rises; "" of one that does not. `losses` are those of the logged intervals."""
    if len(losses) < 3 * WINDOW:
        return ""
    means = [sum(losses[at : at + WINDOW]) / WINDOW for at in range(len(losses) - WINDOW + 1)]
    lowest, last = min(means), means[-1]
    change = median(abs(after - before) for before, after in zip(losses, losses[1:], strict=False))
    if lowest > 0 and last > RISEN * lowest and last - lowest > 3 * change:
        return f"the loss rises: {last:.3g} after {lowest:.3g} at its lowest; a lower learning_rate is the first to try"
    return ""


def exploding(norms: Sequence[float]) -> str:
    """What is told of gradients that explode; "" of those that do not. `norms` are those of the logged intervals."""
    if len(norms) < 2 * WINDOW:
        return ""
    usual = median(norms[:-2])
    if usual > 0 and min(norms[-2:]) > EXPLODED * usual:
        return (
            f"the gradient norm explodes: {norms[-1]:.3g}, where it was {usual:.3g}; lower learning_rate, raise "
            "warmup_fraction"
        )
    return ""


def unreached(names: Sequence[str], num_trained: int) -> str:
    """What is told of the tensors `names`, of `num_trained` that are trained, which no gradient has reached."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{len(names)} of {num_trained} trained tensors had no gradient in the first {STEPS_UNTIL_REACHED} optimiser "
        f"steps, and learn nothing: {', '.join(names[:3])}{more}. Something between them and the loss lets none "
        "through; try another adapter.kind, target_modules or precision"
    )


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams of `tokens` that occur in it before; 0 of fewer than 5 tokens."""
    grams = [tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def example(tokenizer: Any, row: dict[str, Any]) -> list[tuple[str, bool]]:
    """A row in pieces of text, each with whether it has a loss; of a pair, its prompt and the chosen answer, of a pair
    that is scored, the token at which the chosen chat is, of a prompt that is answered in training nothing."""
    if "prompt" in row:
        ids, trained = row["prompt"], [False] * len(row["prompt"])
    elif "prompt_ids" not in row and "chosen_ids" in row:
        ids = row["chosen_ids"]
        trained = [False] * (len(ids) - 1) + [True]
    elif "prompt_ids" in row:
        answer = row["chosen_ids"] if "chosen_ids" in row else row["completion_ids"]
        ids = [*row["prompt_ids"], *answer]
        trained = [False] * len(row["prompt_ids"]) + [True] * len(answer)
    else:
        ids = row["input_ids"]
        trained = [label != IGNORED for label in row.get("labels", ids)]
    runs = itertools.groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode([token for token, _ in run]), own) for own, run in runs]


def _told(logs: dict[str, Any]) -> dict[str, float]:
    """The measures of a log entry of the trainer that are told."""
    others = ("_runtime", "per_second", "epoch", "step")
    kept = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
    kept = {name: value for name, value in kept.items() if name.split("_")[0] not in ("train", "total")}
    return {name: value for name, value in kept.items() if not name.endswith(others)}


def _of_curves(history: Sequence[dict[str, float]]) -> dict[str, str]:
    """What is told of the loss and of the gradients."""
    losses, norms = (
        [entry[name] for entry in history if math.isfinite(entry.get(name, math.nan))] for name in ("loss", "grad_norm")
    )
    # The loss of reinforcement is no measure of what is learnt.
    is_reinforced = any("reward" in entry for entry in history)
    return {"loss": "" if is_reinforced else rising(losses), "gradient": exploding(norms)}


def _named(trainer: Any) -> str:
    """The rows of the forward passes of the last step whose loss is not finite, or of all, by their beginnings."""
    import torch

    pad = trainer.processing_class.pad_token_id

    def texts(rows: Any) -> list[str]:
        return [trainer.processing_class.decode([token for token in row.tolist() if token != pad]) for row in rows]

    told = [(texts(rows), bool(torch.isfinite(loss).all())) for rows, loss in trainer.passes if rows is not None]
    passes = processes.gathered(told)
    bad = [rows for rows, is_finite in passes if not is_finite]
    found = [row for rows in bad or [rows for rows, _ in passes] for row in rows]
    begins = ", ".join(repr(text[:60]) for text in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"Its batch has {len(found)} rows{', with a loss that is not finite' if bad else ''}: {begins}{more}"


def _asked(rows: Any) -> list[list[int]]:
    """What stands before the first trained token of the first rows: nothing, of texts that are trained whole."""
    found = []
    for row in (rows[at] for at in range(min(NUM_ASKED, len(rows)))):
        labels = row.get("labels")
        prompt = row.get("prompt_ids", row.get("prompt"))
        if prompt is None and labels is not None:
            first = next((at for at, label in enumerate(labels) if label != IGNORED), 0)
            prompt = row["input_ids"][:first]
        if prompt:
            found.append(list(prompt))
    return found


def _repetition(trainer: Any, asked: Sequence[list[int]]) -> float:
    """Mean repetition of the greedy answers of the model as it is to some prompts."""
    import torch

    if not asked:
        return 0.0
    model, pad = trainer.model, trainer.processing_class.pad_token_id
    was_training = model.training
    model.eval()
    ids_BL, mask_BL = (part.to(model.device) for part in left_padded(asked, pad or 0))
    with torch.no_grad():  # weights that are first gathered in inference mode could not be trained
        answers_BL = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=NUM_ANSWERED,
            do_sample=False,
            **without_routers(model),
        )
    model.train(was_training)
    # What stands after the end of an answer is padding.
    answers = [[token for token in row if token != pad] for row in answers_BL[:, ids_BL.shape[1] :].tolist()]
    return sum(map(repetition, answers)) / len(answers)
