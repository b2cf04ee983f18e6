"""Random kills over a whole run whose store is on S3, compared with a run that nobody disturbed.

    python tests/benchmarks/kills.py [KILLS]

The chain of `colours.py` is run twice undisturbed, each time from an empty store: the first run warms the server that
forks tasks. Then it is run from a third empty store, and KILLS times (20) the process of whichever task is at work
gets SIGKILL, with all that it has started. The kills come at moments drawn from all the work of an undisturbed run
between preflight and promotion, so that a task meets them in proportion to its time, and some before any new work has
begun; after each the same `bloomery run` is started again, while the S3 server answers now and then with 503, resets a
connection, or tears an answer. Writes kills.json beside this file; exits with 1 where an artifact differs that holds
no times, or where checkpoints or uploads are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import colours
import psutil
import tiny
import yaml
from s3_server import BUCKET, Server

from bloomery.components.core import interpreter
from bloomery.pipelines import fork_server, run_outputs

FAULTS = ("503", "reset", "lost", "torn")
CHECKPOINT = {"every_minutes": 1e-3}
TRAININGS = ("cpt", "sft", "dpo")
HOLD_TIMES = ("measurement", "variants")
"""The outputs that say how long something took, which no two runs share."""
EARLY = 0.15
"""The share of kills that do not wait for new work."""
UNTOUCHED = ("preflight", "promotion")
SECONDS = 300
"""What has not come by then never will."""
FILE = Path(__file__).with_suffix(".json")


def main(kills: int) -> int:
    """Run, print and write what was found; 0 if nothing was lost."""
    commit = subprocess.run(["git", "-C", FILE.parent, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    server = Server()
    server.clear()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        os.environ |= {**server.environment(), "TMPDIR": name, "OMP_NUM_THREADS": "1"}
        project = written(Path(name))
        os.environ[interpreter.PYTHON], _ = stack.enter_context(fork_server.serving())
        (tasks,) = psutil.Process().children()
        runs = {store: timed(project, store) for store in ("first", "second")}
        chance = random.Random(17)
        began = time.perf_counter()
        killed = [
            Attempt(project, server, tasks, chance).killed(*moment)
            for moment in moments(runs["second"]["run"], kills, chance)
        ]
        runs["killed"] = timed(project, "killed")
        seconds = time.perf_counter() - began
        outputs = {store: digests(summary) for store, summary in runs.items()}
    differing = [key for key in outputs["second"] if outputs["killed"].get(key) != outputs["second"][key]]
    found = {
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kills": len(killed),
        "kills by task": dict(Counter(killed)),
        "runs": kills + 1,
        "trainings that went on from a checkpoint": len(resumed(server)),
        "status": runs["killed"]["status"],
        "seconds, killed": round(seconds, 1),
        "seconds, undisturbed": runs["second"]["seconds"],
        "artifacts": len(outputs["second"]),
        "artifacts with the same digest": len(outputs["second"]) - len(differing),
        "artifacts that differ": differing,
        "of two undisturbed runs differ": [
            key for key in outputs["first"] if outputs["first"][key] != outputs["second"][key]
        ],
        "model": outputs["killed"]["ptq model"],
        "same model": outputs["killed"]["ptq model"] == outputs["second"]["ptq model"],
        "objects, killed": len(objects(server, "killed")),
        "objects, undisturbed": len(objects(server, "second")),
        "checkpoints left": sum("checkpoint" in name for name in objects(server, "killed")),
        "uploads in parts left": len(server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())),
    }
    server.stop()
    text = json.dumps(found, indent=1)
    print(text)
    FILE.write_text(text + "\n", encoding="utf-8")
    lost = [key for key in differing if key.split()[-1] not in HOLD_TIMES]
    is_complete = found["status"] == "promoted" and outputs["killed"].keys() == outputs["second"].keys()
    return int(bool(lost) or not is_complete or found["checkpoints left"] + found["uploads in parts left"] > 0)


def written(folder: Path) -> Path:
    """The project, with trainings that keep a checkpoint after every step in which none is being copied."""
    project = folder / "project"
    project.mkdir()
    colours.write_recipe(project, tiny.write_model(folder / "model"))
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    for stage in recipe["stages"]:
        for name in TRAININGS if isinstance(stage, dict) else ():
            if name in stage:
                stage[name]["checkpoint"] = CHECKPOINT
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return project


def timed(project: Path, store: str) -> dict[str, Any]:
    """The summary of a run to its end, in a workdir and with a store of that name."""
    return colours.run(project, store, BLOOMERY_STORE=f"s3://{BUCKET}/{store}")


def digests(summary: dict[str, Any]) -> dict[str, str]:
    """Of every artifact of a run, by stage and output."""
    return {" ".join(key): output.manifest.digest for key, output in colours.outputs(summary).items()}


def moments(run_dir: str, kills: int, chance: random.Random) -> list[tuple[str, float]]:
    """(task, seconds since it began) in the order of the run; of those before any new work ("", seconds)."""
    _, finished, _ = run_outputs.read(Path(run_dir))
    spans = [(name, event["seconds"]) for name, event in finished.items() if name not in UNTOUCHED]
    early = sum(chance.random() < EARLY for _ in range(kills))
    drawn = sorted(chance.uniform(0, sum(seconds for _, seconds in spans)) for _ in range(kills - early))
    found = []
    for name, seconds in spans:
        found += [(name, moment) for moment in drawn if 0 <= moment < seconds]
        drawn = [moment - seconds for moment in drawn]
    for _ in range(early):
        found.insert(chance.randrange(len(found) + 1), ("", chance.uniform(0, finished["preflight"]["seconds"])))
    return found


class Attempt:
    """A `bloomery run` that is to be killed."""

    def __init__(self, project: Path, server: Server, tasks: psutil.Process, chance: random.Random) -> None:
        self.project, self.server, self.tasks, self.chance = project, server, tasks, chance

    def killed(self, task: str, after: float) -> str:
        """Run until a kill has landed, `after` seconds since `task` began, or any where that has ended before: the task
        that it met."""
        known = set(self._journals())
        self.server.fail(self.chance.choice(FAULTS), self.chance.choice(("GET", "PUT")), self.chance.randint(1, 2))
        environment = {**os.environ, "BLOOMERY_STORE": f"s3://{BUCKET}/killed"}
        command = [colours.BLOOMERY, "run", "recipe.yaml", "--workdir", "killed"]
        run = subprocess.Popen(command, cwd=self.project, env=environment, stderr=subprocess.PIPE, text=True)
        is_over = task in self._ended()
        self._wait(run, lambda: self._new_work(known) if is_over else task in self._new_work(known) or not task)
        due, met = time.monotonic() + after, ""
        while run.poll() is None:
            # One that was about to end by itself does not end the run: promotion, which then begins, is killed.
            if time.monotonic() > due and not met or "promotion" in self._new_work(known):
                met = self._kill(known) or met
            time.sleep(0.005)
        told = run.communicate(timeout=SECONDS)[1]
        # 7: what was killed spoke to MLflow for the run, before its tasks.
        if run.returncode not in (1, 7) or not met or "Traceback" in told:
            raise SystemExit(f"{met}: the run that was to be killed ended with {run.returncode}: {told}")
        return met

    def _kill(self, known: set[Path]) -> str:
        """Kill what is at work with all that it has started: what it was, '' if nothing is."""
        doomed = [process for task in self._at_work() for process in (task, *task.children(recursive=True))]
        met = self._begun(known)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return met if doomed else ""

    def _at_work(self) -> list[psutil.Process]:
        """The processes of tasks."""
        found = []
        for process in self.tasks.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _wait(self, run: subprocess.Popen[str], is_there: Callable[[], Any]) -> None:
        """Until something is there, or the run has ended."""
        deadline = time.monotonic() + SECONDS
        while run.poll() is None and not is_there():
            if time.monotonic() > deadline:
                raise SystemExit("nothing more happens in a run")
            time.sleep(0.005)

    def _journals(self) -> list[Path]:
        return list(self.project.glob("killed/runs/*/journal.jsonl"))

    def _events(self, known: set[Path]) -> list[dict[str, Any]]:
        return [event for file in self._journals() if file not in known for event in run_outputs.read(file.parent)[0]]

    def _new_work(self, known: set[Path]) -> list[str]:
        events = self._events(known)
        return [event["stage"] for event in events if event["event"] == "started" and event["stage"] != UNTOUCHED[0]]

    def _ended(self) -> set[str]:
        """The tasks that have ended in any attempt."""
        return {event["stage"] for event in self._events(set()) if event["event"] == "finished"}

    def _begun(self, known: set[Path]) -> str:
        """The task that has begun its work and not ended."""
        events = self._events(known)
        ended = {event["stage"] for event in events if event["event"] == "finished"}
        begun = [event["stage"] for event in events if event["event"] == "started" and event["stage"] not in ended]
        return begun[-1] if begun else "a task that starts, or takes its result from the store"


def resumed(server: Server) -> set[str]:
    """The checkpoints that an attempt has fetched."""
    pattern = re.compile(rf"GET /{BUCKET}/(killed/.*/checkpoint-\d+)/\w+/content/")
    return {found[1] for request in server.requests if (found := pattern.match(request))}


def objects(server: Server, store: str) -> list[str]:
    """The names of all objects of a store."""
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{store}/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
