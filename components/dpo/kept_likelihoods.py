"""Log-likelihoods that outlive the process that found them: they are written every half a minute and when the step is
left, whole or absent, and the same step, begun again, finds the others alone."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.components.core import processes, unfinished
from bloomery.components.core.modelling import likelihood

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

SECONDS = 30.0
"""Between two writings, each of all that is found: of a million pairs 18 MB. What SIGKILL costs, at most; SIGTERM costs
the batch that is being read."""
FILE = "likelihoods.npz"


def nats(model: Any, rows: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], name: str) -> list[float]:
    """Log-likelihood in nats of the `scored` tokens of each row, as `likelihood.log_likelihoods` has it.

    What is found lies in `unfinished.place()`, in a folder that begins with `name`, until the step has its result;
    where there is no place, nothing is written. `name` must stand for the same model and rows each time that the step
    runs. Batches are those of a run that is not stopped, so that the numbers are, too. Of processes that train together
    each finds, and keeps, its share, and has those of all in the end.
    """
    import numpy as np

    share = processes.rank(), processes.count()
    name = name if share[1] == 1 else f"{name}_{share[0]}"
    nats_N, is_found_N = _found(name, len(rows))
    if is_found_N.any():
        logger.info("%s: goes on from %d of %d log-likelihoods", name, is_found_N.sum(), len(rows))
    written = time.monotonic()
    try:
        for batch, nats_BL, _ in likelihood.in_batches(model, rows, scored, is_found_N, share):
            nats_N[batch] = nats_BL.sum(-1).cpu()
            is_found_N[batch] = True
            if time.monotonic() - written > SECONDS and not unfinished.is_copying():
                _write(name, nats_N, is_found_N)
                written = time.monotonic()
    finally:  # SIGTERM unwinds the step (`tracking.sigterm_raises`)
        _write(name, nats_N, is_found_N)
    own_N = np.flatnonzero(is_found_N)
    for found_N, values_N in processes.gathered([(own_N, nats_N[own_N])]):
        nats_N[found_N] = values_N
    return nats_N.tolist()


def _found(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(log-likelihoods [N], whether each was found before [N]), to be written into."""
    import numpy as np

    if newest := max(_folders(name), key=_number, default=None):
        with np.load(newest / FILE) as found:
            return found["nats_N"], found["is_found_N"]
    return np.zeros(count), np.zeros(count, dtype=bool)


def _write(name: str, nats_N: np.ndarray, is_found_N: np.ndarray) -> None:
    """Write what is found beside what was written before, which then goes."""
    import numpy as np

    place, older = unfinished.place(), _folders(name)
    number = int(is_found_N.sum())
    if place is None or number == max(map(_number, older), default=0):
        return
    coming = place / f"{name}.unfinished"
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir(parents=True)
    with (coming / FILE).open("wb") as stream:
        np.savez(stream, nats_N=nats_N, is_found_N=is_found_N)
        stream.flush()
        os.fsync(stream.fileno())
    target = place / f"{name}-{number}"
    os.replace(coming, target)
    unfinished.keep([target])
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)


def _folders(name: str) -> list[Path]:
    place = unfinished.place()
    return list(place.glob(f"{name}-*")) if place else []


def _number(folder: Path) -> int:
    """Log-likelihoods that a folder holds."""
    return int(folder.name.rpartition("-")[2])
