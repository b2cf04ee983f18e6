"""One quantised variant: exported in the form it is served in, loaded again by a fresh process and measured there."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact, errors, interpreter
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import ModelError
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export, installed

logger = logging.getLogger(__name__)


@declare(accelerator=True, reuse=installed)
def run(
    config: QuantisationConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    model: Annotated[Path, Writes("model/1")],
    measurement: Annotated[Path, Writes("measurement/1")],
    chats: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
) -> dict[str, float]:
    """Write `base_model` in the scheme of `config` to `model`, and what a fresh process measured on it.

    `chats`, the training mix, is what schemes that need calibration read, what `qat` trains on, and what is asked where
    no task has another question than those of the evaluation sets; it holds none of these.
    Writes:  model, empty where this machine cannot run the scheme; measurement (measurement.json: scheme, skipped (the
             reason, or ""), details, and what `measure` found: answers and scores by prompt, likelihoods by text,
             bytes, memory, latencies).
    Raises:  ModelError if the exported variant does not load or answer.
    Returns: quantisation/bytes, quantisation/memory_bytes, quantisation/score (of the `validation` split, where there
             is one), quantisation/prefill_seconds, quantisation/decode_seconds_per_token; quantisation/skipped alone
             where the scheme was.
    """
    found: dict[str, Any] = {"scheme": config.name, "skipped": "", "details": {}}
    try:
        found["details"] = export(config, base_model, chats, model, tasks=tasks)
    except CannotRun as reason:
        logger.warning("%s is skipped: %s", config.name, reason)
        found["skipped"] = str(reason)
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir(parents=True)
    artifact.seal(model, "model/1")
    if not found["skipped"]:
        found |= measured_apart(model, tasks, chats)
    measurement.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(measurement / "measurement.json", json.dumps(found, ensure_ascii=False, indent=1))
    artifact.seal(measurement, "measurement/1")
    if found["skipped"]:
        return {"quantisation/skipped": 1.0}
    told = ("bytes", "memory_bytes", "prefill_seconds", "decode_seconds_per_token")
    scored = {"quantisation/score": sum(found["scores"]) / len(found["scores"])} if found["scores"] else {}
    return {**scored, **{f"quantisation/{name}": float(found[name]) for name in told}}


def measured_apart(model: Path, tasks: Path, chats: Path | None) -> dict[str, Any]:
    """What `measure.measure` finds in a process of its own: nothing of the exporting process can stand in for a
    fault of the export, and the peak of its memory is the variant's."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        module = "bloomery.components.quantisation.measure"
        command = [interpreter.fresh(), "-m", module, *map(str, (target, model, tasks, *([chats] if chats else [])))]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        if not target.is_file():
            last = (child.stderr.strip().splitlines() or ["no word"])[-1]
            raise ModelError(
                f"{model.name}: the exported model could not be measured, exit code {child.returncode}: {last[:500]}"
            )
        found = json.loads(target.read_text(encoding="utf-8"))
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return found
