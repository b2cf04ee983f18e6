"""One training that several processes share, one for each accelerator: the same step runs in all.

The step's process starts them by torch's elastic launcher, which is what `torchrun` is, and waits for them. Each runs
the step from its beginning, and where it trains they train together: each with all weights (DDP), or with a part of
them (FSDP2, `modelling/sharding.py`). When the training has ended, the first goes
on alone to what is measured and written, and the others are done. Where several machines share a training, each starts
its processes so (`node_worker.py`), and they meet at the first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from bloomery.components.core import nodes, unfinished
from bloomery.components.core.declare import declared
from bloomery.components.core.errors import BloomeryError, ConfigError, ServiceError

logger = logging.getLogger(__name__)

WORKER = "bloomery.components.core.worker"
WORK, RESULT, ERROR = "work", "result", "error"
"""Files between the step's process and those that it starts."""
GIVEN, WANTED = "BLOOMERY_ACCELERATORS", "BLOOMERY_PROCESSES"
"""Environment: accelerators that the recipe's resources give a task; processes that a user wants, also on CPUs."""
SHARDING = "BLOOMERY_SHARDING"
"""Environment: `full`, where such processes share out the weights too; `none`: each holds all of them."""

MOST = 64
"""Processes of one machine that may train together: more are a slip."""
STOP_SECONDS = 110
"""How long the processes of one of several machines have for a checkpoint after SIGTERM; their pods have 120."""
MEET_SECONDS = 1800
"""How long a machine waits for the others: their images may have to be pulled first."""

Item = TypeVar("Item")


def asked(run: Callable[..., Any]) -> int:
    """Processes that share the training of the step `run`: of one that shares it, as many as BLOOMERY_PROCESSES says,
    else one for each accelerator that the recipe gives it and that is here, at least one."""
    if declared(run).accelerator != "all":
        return 1
    name = WANTED if WANTED in os.environ else GIVEN
    told = os.environ.get(name, "1")
    if not told.isdecimal() or not 0 < int(told) <= MOST:
        raise ConfigError(f"{name}: found {told!r}, expected a number of processes from 1 to {MOST}")
    number = int(told)
    if name == GIVEN and number > 1:
        import torch

        here = torch.cuda.device_count()
        if 0 < here < number:
            logger.warning("%d accelerators are asked for and %d are here: a step has fewer rows", number, here)
        number = max(1, min(number, here))
    if number == 1 and is_sharded(2):
        logger.warning("%s: full, and one process trains: it holds all weights", SHARDING)
    return number


def is_sharded(number: int) -> bool:
    """Whether `number` processes that train together each hold a part of weights, gradients and optimiser states, and
    not all of them. Raises: ConfigError if BLOOMERY_SHARDING says neither."""
    told = os.environ.get(SHARDING, "none")
    if told not in ("none", "full"):
        raise ConfigError(f"{SHARDING}: found {told!r}, expected none or full")
    return told == "full" and number > 1


def launch(work: tuple[Any, ...], number: int) -> dict[str, Any]:
    """What `step.perform(*work)` returns in the first of `number` processes that run it on this machine; nothing on
    another machine than the first of those that train together.

    Raises: the BloomeryError of the process that failed; ServiceError if one was killed; SystemExit after SIGTERM, of
    which all were told.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with _signals_kept(), tempfile.TemporaryDirectory(prefix="bloomery-") as name:
        folder = Path(name)
        (folder / WORK).write_bytes(pickle.dumps((work, unfinished.current())))
        machines = nodes.here()
        meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        if machines.count > 1:
            configs = {"rank": machines.rank, "timeout": MEET_SECONDS}
            meeting = {"rdzv_backend": "static", "rdzv_endpoint": machines.address, "rdzv_configs": configs}
            meeting["shutdown_timeout"] = STOP_SECONDS
        config = LaunchConfig(
            min_nodes=machines.count,
            max_nodes=machines.count,
            nproc_per_node=number,
            run_id=folder.name if machines.count == 1 else "shared",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(str(folder / "logs")),
            **meeting,
        )
        try:
            elastic_launch(config, sys.executable)("-m", WORKER, str(folder))
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)
        except ChildFailedError as failed:
            raise _cause(folder, {rank: failure.exitcode for rank, failure in failed.failures.items()}) from None
        found: dict[str, Any] = {} if machines.rank else pickle.loads((folder / RESULT).read_bytes())
        return found


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Take back the handlers that the launcher puts in the place of others, and let it be told once alone: a second
    signal would have it no longer wait for the processes, which end with it, before their checkpoint is whole."""
    from torch.distributed.elastic.multiprocessing import api

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before, raises = {kind: signal.getsignal(kind) for kind in kinds}, api._terminate_process_handler

    def raises_once(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        raises(signum, frame)

    api._terminate_process_handler = raises_once
    try:
        yield
    finally:
        api._terminate_process_handler = raises
        for kind, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread, where nothing was changed
                signal.signal(kind, handler)


def _cause(folder: Path, codes: dict[int, int]) -> BaseException:
    """Why the processes failed, which ended with these exit codes by rank: one that a user can act on before one that
    was killed, and this before what the others then met for want of it."""
    files = sorted(folder.glob(f"{ERROR}.*"), key=lambda file: file.stat().st_mtime)
    errors: list[Exception] = [pickle.loads(file.read_bytes()) for file in files]
    for error in errors:
        if isinstance(error, BloomeryError):
            return error
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:
            return ServiceError(
                f"process {rank} of those that train together was ended by {signal.Signals(-code).name}, as happens "
                "when memory runs out: lower batch_size and raise gradient_accumulation_steps, or set "
                "gradient_checkpointing: true"
            )
    if errors:
        return errors[0]
    return SystemExit(128 + signal.SIGTERM if -signal.SIGTERM in codes.values() else max(codes.values()))


def rank() -> int:
    """Which of the processes that train together this is, from 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Which of the processes of this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_count() -> int:
    """Processes of this machine that train together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def gathered(items: list[Item]) -> list[Item]:
    """The items of all processes that train together, in the order of their ranks."""
    if count() == 1:
        return items
    import torch
    from torch import distributed

    if not distributed.is_initialized():  # else by the trainer, as here
        backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=MEET_SECONDS))
    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, items)
    return list(chain(*found))


def leave() -> None:
    """End the training that is shared: the first process goes on alone, the others are done."""
    if count() == 1:
        return
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()
    if rank():
        sys.exit(0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
