"""The machines that share a training, as Kubeflow Trainer tells each of them, in the variables that torchrun reads."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Nodes:
    """Where this machine stands among those that train together."""

    count: int
    rank: int
    """Which of them this is, from 0."""
    processes: int
    """Of each of them."""
    address: str
    """Host and port of the first, where they meet."""


def here() -> Nodes:
    """This machine's place; one alone is the first of one."""
    told = os.environ
    return Nodes(
        count=int(told.get("PET_NNODES", 1)),
        rank=int(told.get("PET_NODE_RANK", 0)),
        processes=int(told.get("PET_NPROC_PER_NODE", 1)),
        address=f"{told.get('PET_MASTER_ADDR', 'localhost')}:{told.get('PET_MASTER_PORT', 0)}",
    )
