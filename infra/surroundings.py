"""The environment that a process which computes starts in, on this machine and in a pod: read by the C library and by
OpenMP as a program starts."""

from __future__ import annotations

import os
import sys

from bloomery.components.core.parallel import num_cores

_ALWAYS = {
    "GOMP_SPINCOUNT": "20000",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc keeps and reuses memory instead of giving it back after every tensor: on a virtual machine, where a page fault
is dear, greedy decoding of 160 prompts by a 1 M parameter model took 15 instead of 230 ms a token (2 cores). Threads
that wait spin briefly and then sleep: alone on the machine that trains as fast as endless spinning (10,800 against
11,400 tokens/s; sleeping at once 8,700), and beside another program, spinning fell to 1,400."""


def of(cores: int) -> dict[str, str]:
    """The variables for a process that may use `cores` cores. OpenMP would count those of the whole node."""
    return {**_ALWAYS, "OMP_NUM_THREADS": str(cores)}


def missing() -> dict[str, str]:
    """Those of them that this process was not given."""
    return {name: value for name, value in of(num_cores()).items() if name not in os.environ}


def enter() -> None:
    """Start this program again with what is missing, if anything is; to be called before anything is done."""
    lacking = missing()
    if lacking:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **lacking})
