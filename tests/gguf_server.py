"""llama.cpp itself, as a server on a local port."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """A GGUF behind llama.cpp's own server, on one thread; the test is skipped, with the reason, without it."""

    def __init__(self, file: Path) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp itself: pip install 'bloomery[test]'")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_gpu_layers, settings.n_ctx, settings.n_parallel, settings.port = 0, 256, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(settings)

    def ask(self, path: str, **question: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(question).encode(), headers)
        return json.load(urllib.request.urlopen(request, timeout=120))

    def tokens(self, text: str) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=True)["tokens"]

    def rendered(self, messages: list[dict[str, Any]]) -> str:
        return self.ask("/apply-template", messages=messages)["prompt"]

    def first_token(self, ids: list[int]) -> list[dict[str, Any]]:
        """The five likeliest tokens after `ids`, each with `id` and `logprob`."""
        told = self.ask("/completion", prompt=ids, n_predict=1, n_probs=5, temperature=0)
        return told["completion_probabilities"][0]["top_logprobs"]
