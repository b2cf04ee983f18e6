"""Twenty random kills of a training whose store is on S3, each attempt on a machine of its own.

    python tests/benchmarks/kills.py [KILLS]

A tiny model is fine-tuned to its end; then the same work is begun again and again with an S3 server that also fails now
and then (503, connections reset, answers torn), and killed (SIGKILL) at a random moment after each new checkpoint, or
before one. Writes kills.json beside this file: kills, those that came in the middle of an upload, attempts that went on
from a checkpoint, the digest of both models, objects that are left; exits with 1 where the digests differ or
checkpoints are left.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chats import prompt_row, write_chats
from memory import make_model, words
from s3_server import BUCKET, Server

from bloomery.components.core import artifact, s3, trees
from bloomery.components.core.records import Prompt
from bloomery.components.core.step import run_step
from bloomery.components.sft.step import run as sft

SETTINGS = {
    "learning_rate": 1e-3,
    "epochs": 8,
    "batch_size": 4,
    "max_length": 64,
    "num_validations": 4,
    "checkpoint": {"every_minutes": 1e-4},
}
FAULTS = ("503", "reset", "lost", "torn")
SECONDS = 600
"""A kill that has not come by then never will."""


def main(kills: int) -> int:
    """Run, print and write what was found; 0 if nothing was lost."""
    import trl.trainer.sft_trainer  # noqa: F401  once, and not in each attempt

    chance, server = random.Random(17), Server()
    server.clear()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = given(folder)
        whole = attempt(folder / "whole", inputs, str(folder / "store"))
        whole.join()
        os.environ.update(server.environment())
        found = {"kills": 0, "in an upload": 0, "before a checkpoint": 0, "went on": 0}
        while found["kills"] < kills:
            kill(folder / f"machine{found['kills']}", inputs, server, chance, found)
        last = attempt(folder / "last", inputs, server.uri)
        last.join()
        digests = [artifact.read_manifest(folder / run / "model").digest for run in ("whole", "last")]
    left = list(server.objects())
    found |= {
        "digest": digests[1],
        "same digest": digests[0] == digests[1],
        "checkpoints left": sum("checkpoint" in name for name in left),
        "objects of the result": len(left),
        "uploads in parts left": len(server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())),
    }
    server.stop()
    text = json.dumps(found, indent=1)
    print(text)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return int(not found["same digest"] or found["checkpoints left"] > 0)


def given(folder: Path) -> dict[str, Path]:
    """The artifacts that the training reads: 64 chats, four validation questions, a model of 200,000 numbers."""
    base = make_model(folder / "base", 2_048)
    artifact.seal(base, "model/1")
    pairs = [(words(6, 2_048, number), words(4, 2_048, 1_000 + number)) for number in range(64)]
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in pairs[:4]]
    tasks = folder / "tasks"
    tasks.mkdir()
    echo = {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}
    (tasks / "tasks.json").write_text(json.dumps({"echo": echo}), encoding="utf-8")
    artifact.write_rows(tasks, "prompt/2", Prompt.table([prompt_row(**row) for row in rows]))
    artifact.seal(tasks, "tasks/1", rows=len(rows))
    return {"chats": write_chats(folder / "chats", pairs), "tasks": tasks, "base_model": base}


def attempt(machine: Path, inputs: dict[str, Path], store: str) -> Any:
    """The training in a process of its own, with a disk of its own."""

    def work() -> None:
        machine.mkdir()
        tempfile.tempdir = str(machine)
        os.environ["BLOOMERY_STORE"] = store
        s3.WAITS = (0.05,) * 8
        run_step(sft, "sft", SETTINGS, inputs, {"model": machine / "model"})

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def kill(machine: Path, inputs: dict[str, Path], server: Server, chance: random.Random, found: dict[str, int]) -> None:
    """Begin, wait for something to be written or not, and kill; counts what was met in `found`."""
    seen = len(server.requests)
    server.fail(chance.choice(FAULTS), chance.choice(("GET", "PUT")), times=chance.randint(1, 3))
    process = attempt(machine, inputs, server.uri)
    waits_for = chance.choice((r"/checkpoint-\d+/whole.json", r"/checkpoint-\d+/\w+/content/"))
    deadline = time.monotonic() + SECONDS
    while process.is_alive() and not any(asked(server, seen, waits_for)) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.3))
    if not process.is_alive():
        raise SystemExit(f"the training ended after {found['kills']} kills: give it more epochs")
    process.kill()
    process.join()
    written = list(asked(server, seen, r"/checkpoint-\d+/"))
    found["kills"] += 1
    found["in an upload"] += bool(written) and trees.MARKER not in written[-1]
    found["before a checkpoint"] += not any(trees.MARKER in request for request in written)
    found["went on"] += any(asked(server, seen, r"/content/counters.json", "GET"))


def asked(server: Server, start: int, where: str, method: str = "PUT") -> list[str]:
    """The requests since `start` of that kind."""
    return [request for request in server.requests[start:] if re.match(f"{method} .*{where}", request)]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
