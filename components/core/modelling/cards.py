"""The accelerators that a plan may name, and the machine that it is made on.

Memory as the driver tells it; arithmetic in 16 bits (fp16 on T4 and V100, which have no bf16), dense and accumulated in
32; bandwidth of the memory. From NVIDIA's and AMD's data sheets, half of what they give with sparsity: B200 (HGX), H200
(SXM), H100 (SXM, and PCIe), A100 (SXM, 80 and 40 GB), A10, A10G, L40S, L4, T4, V100 (SXM2), MI300X, and the appendices
of the Ada and Ampere GA102 architecture papers for the two GeForce.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bloomery.components.core.errors import ConfigError

MIB = 2**20
NODE = 8
"""Cards of a node that are linked with each other, as those of HGX and DGX are."""
OVER_NODES = (5_605 / 5_762) ** (1 / 4)
"""Share of a card's speed that is left each time as many nodes again share a training: Llama 3.1 8B in parts by FSDP2
makes 5,762 tokens a second on each of 8 H100s and 5,605 on each of 128, with 400 Gb/s a card between nodes (TorchTitan,
arXiv 2410.06511, in the tables 1 and 3 that its repository holds, benchmarks/llama3_h100_202412_torchtitan.md). Beyond
128 it goes on so; on one node it is 1, which was not measured."""


@dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: float
    flops: float
    """Multiplications and additions a second, at most; 0: not known."""
    bandwidth: float
    """Bytes a second from its memory; 0: not known."""
    is_gpu: bool = True


CARDS = {
    card.name: card
    for card in (
        Card("B200", 183_359 * MIB, 2.25e15, 7.7e12),
        Card("H200", 143_771 * MIB, 989e12, 4.8e12),
        Card("H100", 81_559 * MIB, 989e12, 3.35e12),
        Card("H100-PCIE", 81_559 * MIB, 756e12, 2.0e12),
        Card("A100", 81_920 * MIB, 312e12, 2.039e12),
        Card("A100-40GB", 40_960 * MIB, 312e12, 1.555e12),
        Card("A10", 23_028 * MIB, 125e12, 600e9),
        Card("A10G", 23_028 * MIB, 70e12, 600e9),
        Card("L40S", 46_068 * MIB, 362e12, 864e9),
        Card("L4", 23_034 * MIB, 121e12, 300e9),
        Card("T4", 15_360 * MIB, 65e12, 300e9),
        Card("V100", 32_768 * MIB, 125e12, 900e9),
        Card("RTX4090", 24_564 * MIB, 165e12, 1.008e12),
        Card("RTX3090", 24_576 * MIB, 71e12, 936e9),
        Card("MI300X", 196_592 * MIB, 1.307e15, 5.3e12),
    )
}


def named(name: str, flag: str = "--gpu") -> Card:
    """The card of that name, in whatever case and with what spaces.

    Raises: ConfigError naming the nearest, or all, of what `flag` of a command was given.
    """
    plain = name.upper().replace(" ", "").replace("_", "-")
    if plain in CARDS:
        return CARDS[plain]
    near = difflib.get_close_matches(plain, CARDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(CARDS)}"
    raise ConfigError(f"{flag} {name}: no such card; {hint}")


def seconds_of(operations: float, card: Card, utilisation: float, number: int = 1) -> float | None:
    """Seconds that `number` cards take together, each at this share of its peak; None where that is not known."""
    together = number * (math.pow(OVER_NODES, math.log2(number / NODE)) if number > NODE else 1.0)
    return operations / (card.flops * utilisation * together) if card.flops else None


def here() -> Card:
    """What this machine trains on: its first NVIDIA card, as the driver tells it, or its memory and cores."""
    if told := _driver():
        name, mebibytes = (part.strip() for part in told.split(",")[:2])
        like = _like(name)
        return Card(name, float(mebibytes) * MIB, like.flops, like.bandwidth)
    return Card("this machine's memory", free_bytes(), 0, 0, is_gpu=False)


def _like(name: str) -> Card:
    """The known card that a driver calls so, as `NVIDIA A100-SXM4-40GB` or `NVIDIA GeForce RTX 4090`."""
    plain = name.upper().replace(" ", "-")
    patterns = {key: key.replace("RTX", "RTX-?").replace("-40GB", r"(-\w+)?-40GB") for key in CARDS}
    known = [card for key, card in CARDS.items() if re.search(rf"\b{patterns[key]}(?!\d)", plain)]
    return max(known, key=lambda card: len(card.name), default=Card(name, 0, 0, 0))


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def free_bytes() -> float:
    """Memory that a process may take of this machine and its control group; infinite where neither tells."""
    free = math.inf
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable:"):
            free = float(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, float(most) - float(used.read_text()))
    return free
