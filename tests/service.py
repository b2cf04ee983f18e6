"""A server as its users start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests
from canaries import CANARY, ENVIRONMENT

BLOOMERY = str(Path(sys.executable).parent / "bloomery")


class Service:
    """A running server and its registry."""

    def __init__(self, folder: Path, recipe: str = "recipe.yaml", workdir: str = "w") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = str(folder / workdir / "predictions")
        self.output = folder / f"serve-{port}.log"
        settings = ("poll_seconds=0.3", "max_batch=8", "max_waiting=32")
        values = [part for setting in settings for part in ("--set", f"serving.{setting}")]
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")} | ENVIRONMENT
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [BLOOMERY, "serve", recipe, "--workdir", workdir, "--port", str(port), *values],
                cwd=folder,
                stdout=output,
                stderr=output,
                env=env,
            )
        while self.process.poll() is None:
            try:
                requests.get(f"{self.url}/health", timeout=1)
                return
            except requests.RequestException:
                time.sleep(0.1)
        raise AssertionError(self.output.read_text())

    def ask(self, prompt: str, **fields) -> requests.Response:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 16, **fields}
        return requests.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, stream=fields.get("stream"))

    def answer(self, prompt: str, **fields) -> str:
        response = self.ask(prompt, **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def health(self) -> dict:
        return requests.get(f"{self.url}/health", timeout=10).json()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.output.read_text()
        told = self.output.read_text()
        assert "Traceback" not in told and CANARY not in told
