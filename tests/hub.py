"""A model hub: the part of its API that a snapshot is fetched by, with the files of one folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from json_api import JsonHandler

COMMIT = "a" * 40


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The endpoint of a hub on which every model has the files of `folder`, each as a blob named by its path."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}

    class Handler(JsonHandler):
        def call(self, method: str) -> None:
            path = self.path.partition("?")[0]
            if "/tree/" in path:
                entries = [{"type": "file", "path": name, "size": 1, "oid": name} for name in files]
                self.answer(entries)
            elif "/resolve/" in path:
                self.answer_file(path.partition(f"/resolve/{COMMIT}/")[2], has_body=method == "GET")
            else:
                self.answer({"id": "org/model", "sha": COMMIT})

        def answer_file(self, name: str, has_body: bool) -> None:
            content = files[name].read_bytes()
            self.send_response(200)
            told: dict[str, Any] = {"ETag": f'"{abs(hash(name))}"', "X-Repo-Commit": COMMIT}
            for key, value in {**told, "Content-Length": len(content)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if has_body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.call("HEAD")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let models be fetched from `endpoint` to `cache`."""
    settings = {
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
