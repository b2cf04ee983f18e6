"""Answers by vLLM, in a process of its own: rows join and leave its batch at any token.

vLLM pins its own torch and transformers, so it is installed for an interpreter of its own. Prompts go to it and answers
come from it as token ids: the chat template, the text and the prediction log are those of the engine beside this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from bloomery.components.core.errors import MissingExtraError, ModelError
from bloomery.components.core.modelling import adapter_folders, checkpoints, templates
from bloomery.monitoring.engine import QueueFullError, Row
from bloomery.monitoring.serving_config import ServingConfig

logger = logging.getLogger(__name__)

INTERPRETER = "BLOOMERY_VLLM"
"""Environment variable with the path of a Python that vLLM is installed for; without it, our own if it has vLLM."""
MODULE = "vllm.entrypoints.openai.api_server"
MODEL = "champion"
"""What vLLM calls the one model that it serves."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""
LOADING_SECONDS = 1800
"""Longest that vLLM may take to load a model."""
ANSWER_SECONDS = 600
"""Longest between two tokens of an answer."""


class VllmModel:
    """A vLLM server of one checkpoint on a free port; it ends when nobody holds the model any more."""

    def __init__(
        self, folder: Path, tokenizer: Any, arguments: Sequence[str] = (), adapters: Sequence[tuple[str, Path]] = ()
    ) -> None:
        """Start the server, with LoRA `adapters` (PEFT's name and folder of each), and wait until it answers.

        Raises: MissingExtraError without vLLM, ModelError with the first error of its log if it ends.
        """
        from transformers import GenerationConfig

        self.config = checkpoints.load_config(folder)
        has_own = (folder / "generation_config.json").is_file()
        self.generation_config = GenerationConfig.from_pretrained(folder) if has_own else None
        self._ends = templates.end_tokens(tokenizer, self.generation_config)
        never = getattr(self.generation_config, "suppress_tokens", None) or []  # vLLM does not read them there
        self._bias = {"logit_bias": {str(token): -100 for token in never}} if never else {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        # A server that is killed must not leave vLLM with the accelerator.
        command = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command += [interpreter(), "-m", MODULE, "--model", str(folder), "--served-model-name", MODEL]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        if self.config.dtype is not None:  # else vLLM takes 16 bits for weights of 32, which nobody has evaluated
            command += ["--dtype", str(self.config.dtype).removeprefix("torch.")]
        command += _of_adapters(adapters)
        self._log = tempfile.TemporaryFile(prefix="bloomery-vllm-")
        process = subprocess.Popen([*command, *arguments], stdout=self._log, stderr=subprocess.STDOUT)
        self._end = weakref.finalize(self, process.terminate)
        until = time.monotonic() + LOADING_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > until:
                self._end()
                raise ModelError(f"{folder}: vLLM does not serve it: {self._cause()}")
            time.sleep(0.2)

    def answer(self, row: Row, on_step: Callable[[list[Row]], None] = lambda rows: None) -> None:
        """Add the tokens of the answer to `row`, all of them or until it is cancelled.

        `on_step` is called after every token or few; vLLM tells the log-probability of a token, and no entropy.
        Raises: ModelError with what vLLM says, requests.RequestException if it is gone.
        """
        asked = {
            "model": row.served.adapter or MODEL,
            "prompt": list(row.prompt),
            "max_tokens": row.max_new_tokens,
            "temperature": row.temperature,
            "top_p": row.top_p,
            "seed": row.random.getrandbits(63),
            "stop_token_ids": self._ends,
            "logprobs": 0,
            "return_token_ids": True,
            "stream": True,
            **self._bias,
        }
        with requests.post(f"{self._url}/v1/completions", json=asked, stream=True, timeout=ANSWER_SECONDS) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if row.is_cancelled or line == b"data: [DONE]":
                    break  # vLLM gives up what nobody listens to
                if line.startswith(b"data: "):
                    told = json.loads(line.removeprefix(b"data: "))
                    if "error" in told:
                        raise ModelError(f"vLLM could not answer: {told['error']}; its log says: {self._cause()}")
                    self._take(row, told["choices"][0])
                    on_step([row])

    def _take(self, row: Row, choice: dict[str, Any]) -> None:
        told = zip(choice["token_ids"] or [], choice["logprobs"]["token_logprobs"], strict=True)
        for token, log_probability in told:
            if token not in self._ends:
                row.tokens.append(token)
                row.log_probabilities.append(log_probability)
        row.finish_reason = choice["finish_reason"] or ""

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self._url}/health", timeout=5).ok
        return False

    def _cause(self) -> str:
        """The first error of vLLM's log, which the others follow from, or its last line."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        told = [line for line in lines if " ERROR " in line and "Error: " in line] or lines[-1:] or ["no word"]
        return told[0][-500:]


def _of_adapters(adapters: Sequence[tuple[str, Path]]) -> list[str]:
    """vLLM's arguments for LoRA adapters, https://docs.vllm.ai/en/latest/features/lora.html: it holds memory for the
    largest rank, which has to be one of RANKS."""
    if not adapters:
        return []
    largest = max(int(adapter_folders.settings(name, folder).get("r", 8)) for name, folder in adapters)
    rank = next((size for size in RANKS if size >= largest), largest)
    named = [f"{name}={folder}" for name, folder in adapters]
    return ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank), "--lora-modules", *named]


class VllmEngine:
    """`engine.Engine` for rows whose model is a VllmModel: as many at once as `max_batch`, which vLLM batches."""

    num_batches = 0

    def __init__(self, config: ServingConfig, on_step: Callable[[list[Row]], None]) -> None:
        self._config = config
        self._on_step = on_step
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(config.max_batch, thread_name_prefix="engine")
        self._is_closed = False
        self.num_waiting = 0
        """Rows that vLLM has not been asked yet."""

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows. Raises: QueueFullError, and then none is queued."""
        with self._lock:
            if self._is_closed or self.num_waiting + len(rows) > self._config.max_waiting:
                raise QueueFullError
            self.num_waiting += len(rows)
            for row in rows:
                self._pool.submit(self._answer, row)

    def close(self) -> None:
        """Answer what waits, and take no more."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown()

    def _answer(self, row: Row) -> None:
        with self._lock:
            self.num_waiting -= 1
        try:
            if not row.is_cancelled:
                row.served.model.answer(row, self._on_step)
        except Exception:  # an answer that fails must not end the service
            logger.exception("an answer failed")
            row.finish_reason = "error"
        row.finish_reason = row.finish_reason or "stop"
        self._on_step([row])


def interpreter() -> str:
    """The Python that has vLLM. Raises: MissingExtraError if there is none."""
    path = os.environ.get(INTERPRETER, "")
    if path and Path(path).is_file():
        return path
    if not path and importlib.util.find_spec("vllm"):
        return sys.executable
    raise MissingExtraError(
        "serving.engine is vllm, which needs an environment of its own: python -m venv vllm && "
        f"vllm/bin/pip install vllm, then set {INTERPRETER} to the path of vllm/bin/python (now: {path or 'not set'})"
    )
