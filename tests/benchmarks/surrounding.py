"""Where a number of a benchmark comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def surrounding() -> dict[str, str]:
    """The commit that was measured, and the processors, and the cards if there are any."""
    head = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in told if "model name" in line), platform.processor())
    return {"hardware": f"{os.cpu_count()} x {cpu}", "commit": commit}
