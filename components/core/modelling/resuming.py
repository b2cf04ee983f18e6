"""Checkpoints of a training that was not finished: written every few minutes and on SIGTERM, whole or absent, and taken
up again by the same step, which ends with the same digests as one that was never stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from bloomery.components.core import processes, unfinished
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ServiceError

logger = logging.getLogger(__name__)

COUNTERS = "counters.json"
COUNTED = ("_total_train_tokens",)
"""What TRL's trainers count and do not put into a checkpoint themselves."""
PATIENCE = 10.0
"""Seconds that an optimiser step or a validation has after SIGTERM to end by itself. Then it is left, to be done again:
either may take minutes, and a pod is given 30 s (Kubernetes' terminationGracePeriodSeconds)."""


class Left(BaseException):
    """An optimiser step was left in the middle of its passes, or a validation; the weights are those that it began
    with."""


class CheckpointConfig(Config):
    """Checkpoints of a training that is going on, which the same step takes up if it was killed."""

    every_minutes: float = Field(default=10, gt=0)
    """Time between two checkpoints: what a killed training has to do again at most. One is written on SIGTERM, too: a
    step or a validation that does not end within ten seconds is left and done again, where one process trains. To a
    store on S3 each is copied while the training goes on, and the next one not written before that has
    ended."""
    keep: int = Field(default=1, gt=0)
    """Newest checkpoints that are kept until the step has ended; each holds weights and optimiser: of a full training
    12 bytes a parameter, of an adapter 12 bytes a parameter of the adapter. Where accelerators share out the weights
    (`resources.sharding`), each writes its part."""


class Keeper(Protocol):
    """Something beside the trainer whose state a checkpoint has to hold."""

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint; all processes that train together are asked to."""

    def load(self, folder: Path) -> None:
        """Take the state out of it."""


class Resuming:
    """Writes the checkpoints of one training, and finds the newest when it is started again.

    They lie in `unfinished.place()`; where there is none, nothing is written.
    """

    def __init__(self, config: CheckpointConfig, keepers: Sequence[Keeper]) -> None:
        self.config = config
        self.keepers = keepers
        self.place = unfinished.place()
        self.trainer: Any = None
        self.is_stopped = False
        """Whether SIGTERM has come."""
        self.may_leave = False
        """Whether an optimiser step is at its passes, or a validation is on: nothing is changed yet."""
        self.began: tuple[Any, dict[str, Any]] = (None, {})
        """Random states and counters as a training that goes on with this step or validation has to have them."""
        self.is_validated = True
        """Whether no validation is due of the weights as they are."""
        self.has_ended = False
        """Whether the training wants no further step."""

    @property
    def folder(self) -> Path | None:
        """Where the trainer writes a checkpoint, under another name until it is whole."""
        return self.place and self.place / "unfinished"

    def train(self, trainer: Any) -> None:
        """Run `trainer` from the newest checkpoint, or from the start. After SIGTERM and a checkpoint the process ends,
        with the exit code 143 that a shell tells of it."""
        self.trainer = trainer
        newest = self._newest()
        begins = processes.gathered([newest.name if newest else "the start"])
        if len(set(begins)) > 1:  # a machine did not find what the others did
            raise ServiceError(f"the processes that train together would go on from {', '.join(sorted(set(begins)))}")
        if newest is not None:
            for keeper in self.keepers:
                keeper.load(newest)
            logger.info("goes on from optimiser step %d", _step(newest))
        with self._on_sigterm():
            try:
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            except Left:
                self._save_as_it_began()
        if self.is_stopped:
            logger.warning(
                "stopped by SIGTERM after optimiser step %d; the same run goes on from there", trainer.state.global_step
            )
            sys.exit(128 + signal.SIGTERM)

    def callback(self) -> Any:
        """The trainer's callback that asks for checkpoints and puts them in their place."""
        from transformers import TrainerCallback

        resuming = self

        class Checkpoints(TrainerCallback):
            def __init__(self) -> None:
                self.written = time.monotonic()
                self.is_first = False

            def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if resuming.place is None:
                    return
                # The first step of an epoch is gone on with from before its batches are drawn, others from after.
                resuming.began, self.is_first = resuming.now(), True

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if resuming.place is None:
                    return
                if not self.is_first:
                    resuming.began = resuming.now()
                self.is_first, resuming.may_leave = False, True

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                resuming.may_leave = False

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.written = time.monotonic()
                if state.global_step:
                    resuming._go_on(control)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                resuming.has_ended = control.should_training_stop
                waited = time.monotonic() - self.written
                is_due = resuming.place is not None and waited > 60 * resuming.config.every_minutes
                flags = is_due, unfinished.is_copying(), resuming.is_stopped
                is_due, is_copying, is_stopped = _of_any_process(*flags)
                resuming.is_stopped = is_stopped
                is_wanted = is_due and not is_copying and state.global_step < state.max_steps
                control.should_save = is_stopped or is_wanted
                control.should_training_stop |= is_stopped
                resuming.is_validated = not control.should_evaluate
                if control.should_evaluate and resuming.place is not None:
                    control.should_evaluate = not is_stopped
                    resuming.began = resuming.now()

            def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                resuming.may_leave = not resuming.is_validated

            def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                resuming.may_leave, resuming.is_validated = False, True
                resuming.has_ended = control.should_training_stop
                (resuming.is_stopped,) = _of_any_process(resuming.is_stopped)
                control.should_save |= resuming.is_stopped
                control.should_training_stop |= resuming.is_stopped

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                for keeper in resuming.keepers:
                    keeper.save(written)
                _wait_for_others()
                if not state.is_world_process_zero and not processes.local_rank():
                    unfinished.keep_part(written)  # of another machine than the first
                _wait_for_others()
                if state.is_world_process_zero:
                    resuming._put(written)
                self.written = time.monotonic()

        return Checkpoints()

    def _put(self, written: Path) -> None:
        """Add to a written checkpoint what the trainer does not know of, and give it its place."""
        assert self.place is not None
        told = {"counted": self._counted(), "is_validated": self.is_validated, "has_ended": self.has_ended}
        (written / COUNTERS).write_text(json.dumps(told))
        target = self.place / written.name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(written, target)
        whole = self._whole()
        unfinished.keep(whole[-self.config.keep :])
        for old in whole[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)
        logger.info("checkpoint at optimiser step %d", _step(target))

    def _counted(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.trainer).items() if name in COUNTED}

    def now(self) -> tuple[Any, dict[str, Any]]:
        """(random states of all generators, counters) as they are."""
        import numpy as np
        import torch

        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return (random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda), self._counted()

    def _put_back(self, then: tuple[Any, dict[str, Any]]) -> None:
        """Make random states and counters what `now` has told."""
        import numpy as np
        import torch

        (of_python, of_numpy, of_torch, of_cuda), counted = then
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda is not None:
            torch.cuda.set_rng_state(of_cuda)
        vars(self.trainer).update(counted)

    def _go_on(self, control: Any) -> None:
        """Take up what the newest checkpoint holds beside the trainer's own, and do the validation that it was due."""
        trainer, newest = self.trainer, self._newest()
        assert newest is not None
        told = json.loads((newest / COUNTERS).read_text())
        vars(trainer).update(told["counted"])
        self.is_validated, self.has_ended = told["is_validated"], told["has_ended"]
        control.should_training_stop = self.has_ended
        if not self.is_validated:
            trainer._load_rng_state(str(newest))
            trainer.evaluate()
            # What the trainer is to go on with is as after the validation, not as in the checkpoint.
            trainer._load_rng_state = lambda _, then=self.now(): self._put_back(then)
        if control.should_training_stop:  # which the trainer looks at after a step, and none is wanted
            trainer._run_epoch = lambda **_: None

    def _save_as_it_began(self) -> None:
        """Write the checkpoint of the last optimiser step that ended, if there is one and it is not written yet."""
        trainer, newest = self.trainer, self._newest()
        step = trainer.state.global_step
        what = f"optimiser step {step + 1}" if self.is_validated else f"the validation after optimiser step {step}"
        logger.warning("%s was left after %g s", what, PATIENCE)
        if not step or (newest and _step(newest) == step):
            return
        self._put_back(self.began)
        if not self.is_validated:  # what it has told by now it will tell again
            history = trainer.state.log_history
            trainer.state.log_history = [entry for entry in history if entry["step"] < step or "loss" in entry]
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def _whole(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.place.glob("checkpoint-*"), key=_step) if self.place else []

    def _newest(self) -> Path | None:
        return self._whole()[-1] if self._whole() else None

    @contextlib.contextmanager
    def _on_sigterm(self) -> Any:
        """Let SIGTERM end the training after a checkpoint, where there is a place for one."""
        if self.place is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _: Any) -> None:
            signal.signal(number, signal.SIG_IGN)  # a second one puts nothing off, and cuts nothing off
            self.is_stopped = True
            if processes.count() == 1:  # of several none may leave the others alone
                signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE / 10)

        def leave(*_: Any) -> None:
            if self.may_leave:
                self.may_leave = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Left

        before = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGALRM, leave)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before[1])
            if not self.is_stopped:  # else the process ends, and what it has yet to copy is copied
                signal.signal(signal.SIGTERM, before[0])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _of_any_process(*flags: bool) -> tuple[bool, ...]:
    """Each flag, true if it is in one of the processes that train together: a checkpoint is written by all at once."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return flags
    told = torch.tensor(flags, dtype=torch.int32, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in told.tolist())


def _wait_for_others() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
