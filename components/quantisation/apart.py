"""llm-compressor's schemes, by an interpreter of its own: llm-compressor 0.14 needs transformers 5.17 or older, this
project 5.23 or newer. What it writes is compressed-tensors, which transformers and vLLM load."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from bloomery.components.core.errors import MissingExtraError, ModelError
from bloomery.components.core.modelling.calibration import CALIBRATION_TOKENS
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig

INTERPRETER = "BLOOMERY_LLM_COMPRESSOR"
"""Environment variable with the path of a Python that llm-compressor is installed for."""


def interpreter(config: QuantisationConfig) -> str:
    """The Python that has llm-compressor. Raises: MissingExtraError if none is named or it is not there."""
    path = os.environ.get(INTERPRETER, "")
    if not Path(path).is_file():
        raise MissingExtraError(
            f"{config.name} needs llm-compressor in an environment of its own, as it needs an older transformers: "
            f"python -m venv llmc && llmc/bin/pip install 'llmcompressor>=0.14,<0.15', then set {INTERPRETER} to the "
            f"path of llmc/bin/python (now: {path or 'not set'})"
        )
    return path


def export(config: QuantisationConfig, source: Path, texts: list[str], target: Path) -> None:
    """Write `source` to `target` by llm-compressor, calibrated on `texts`, with the linear layers but the head.

    Raises: MissingExtraError as `interpreter`; CannotRun where llm-compressor asks for an accelerator; ModelError with
            the last line that it said if it failed.
    """
    job = {
        "scheme": config.scheme,
        "group_size": config.group_size,
        "source": str(source.absolute()),
        "target": str(target.absolute()),
        "max_length": CALIBRATION_TOKENS,
        "texts": texts,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).with_name("llm_compressor.py")
        child = subprocess.run(
            [interpreter(config), "-I", str(script), str(file)],  # -I: our file torchao.py must not stand for torchao
            cwd=folder,  # it keeps a log where it runs
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    if child.returncode:
        last = (child.stdout.strip().splitlines() or ["no word"])[-1]
        if "accelerator" in last:  # awq_int4 of llm-compressor 0.14 on a CPU
            raise CannotRun(f"{config.name}: llm-compressor needs an accelerator: {last[:300]}")
        raise ModelError(f"{config.name}: llm-compressor ended with exit code {child.returncode}: {last[:500]}")
