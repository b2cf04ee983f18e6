"""What the servers of APIs in the tests have in common."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Passes each request on to `call`, which answers it with a value as JSON, or with a text."""

    def call(self, method: str) -> None:
        raise NotImplementedError

    def answer(self, value: Any, status: int = 200) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.call("GET")

    def do_POST(self) -> None:
        self.call("POST")

    def do_DELETE(self) -> None:
        self.call("DELETE")

    def log_message(self, *arguments: Any) -> None:
        pass
