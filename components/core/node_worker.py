"""One of the machines that share a training, in a pod of a `TrainJob`: `python -m … URI PORT…`.

`URI` is where the result belongs on the object store, and `PORT…` the inputs, which lie beside it with all that says
what is to be done (`train_job.py`). Every machine takes them and starts its processes; the first leaves the result.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, nodes, processes, s3, store, train_job, trees, unfinished
from bloomery.components.core.config import parse
from bloomery.components.core.errors import ServiceError
from bloomery.components.core.step import config_class, configure_logging, ending

logger = logging.getLogger(__name__)


def main(uri: str, ports: list[str]) -> None:
    """Do this machine's part of the work behind `uri`; ends the process with the exit code of what went wrong."""
    configure_logging()
    with tempfile.TemporaryDirectory(prefix="bloomery-") as name, ending("node"):
        folder = Path(name)
        if s3.text(f"{uri}/{trees.MARKER}") is not None:
            logger.info("the result is there already")
            return
        parts = {part: folder / "inputs" / part for part in ports}
        (folder / "inputs").mkdir()
        facts = trees.get(f"{uri}{train_job.WORK}", parts)
        if facts is None:
            raise ServiceError(f"{uri}{train_job.WORK}: the work is gone; the task that asks for it has ended")
        _share(uri, facts, _by_port(parts), folder / "outputs")


def _by_port(parts: dict[str, Path]) -> dict[str, Any]:
    """The inputs of a step, of which each of a list stands with its number in brackets."""
    inputs: dict[str, Any] = {}
    for name, path in parts.items():
        port, is_listed, _ = name.partition("[")
        if is_listed:
            inputs.setdefault(port, []).append(path)
        else:
            inputs[port] = path
    return inputs


def _share(uri: str, facts: dict[str, Any], inputs: dict[str, Any], outputs: Path) -> None:
    machines = nodes.here()
    run = importlib.import_module(facts["step"]).run
    settings = parse(config_class(run), facts["config"], where=facts["stage"])
    entry = store.OnObjects(uri, artifact.ports(run, artifact.Writes))
    written = {port: outputs / port for port in entry.writes}
    stage, digests = facts["stage"], facts["digests"]

    def work(given: store.Outputs) -> dict[str, Any]:
        return processes.launch((run, stage, settings, inputs, dict(given), digests), machines.processes)

    logger.info("%s: machine %d of %d, %d processes", stage, machines.rank + 1, machines.count, machines.processes)
    if machines.rank:
        with unfinished.kept_at(entry.checkpoints):
            work(written)
    else:
        entry.make(written, work)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
