"""A real S3 server over HTTP (moto's), which fails where it is told to."""

from __future__ import annotations

import functools
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import boto3

BUCKET = "bucket"
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Server:
    """Keeps objects in memory, in a thread. `requests` lists what came as `METHOD path?query`.

    `fail(what, where)` lets the next requests that the pattern `where` is found in fail: `503`; `AccessDenied` or
    another code of 4xx; `reset` (the connection, before anything is done); `lost` (the answer, when all is done);
    `torn` (half of the answer's body comes); `slow`; `stuck` (until `release`); `hung` (until then, and then nothing is
    done).
    """

    def __init__(self, certificate: ssl.SSLContext | None = None) -> None:
        from moto.server import create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_: Any) -> None:
                pass

        self._app: Application = create_backend_app("s3")
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent, ssl_context=certificate
        )
        self._server.daemon_threads = True
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.port}"
        self.uri = f"s3://{BUCKET}/store"
        self.requests: list[str] = []
        self.stuck = threading.Event()
        """Set when a request is stuck."""
        self.knows_conditions = True
        """False: `If-None-Match` is not looked at, as by a store that does not know it."""
        self._go_on = threading.Event()
        self._faults: list[list[Any]] = []
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """By which boto3 finds this server."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, **keys}

    @functools.cached_property
    def client(self) -> Any:
        """One of its own, which knows nothing of the environment."""
        return boto3.session.Session("key", "secret", region_name="us-east-1").client("s3", endpoint_url=self.url)

    def objects(self, prefix: str = "store/") -> dict[str, bytes]:
        """The objects under a prefix of the bucket, by name."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        return {
            entry["Key"].removeprefix(prefix): self.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            for entry in found
        }

    def clear(self) -> None:
        """Be as new, with an empty bucket."""
        from moto.backends import get_backend

        self._faults.clear()
        self.knows_conditions = True
        get_backend("s3").reset()
        self.client.create_bucket(Bucket=BUCKET)
        self.requests.clear()
        self.stuck.clear()
        self._go_on.clear()

    def fail(self, what: str, where: str = "", times: int = 1) -> None:
        self._faults.append([what, where, times])

    def release(self) -> None:
        self._go_on.set()

    def stop(self) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        asked += "".join(f" {name}" for name in ("If-None-Match", "Range") if environ.get(_key(name)))
        self.requests.append(asked)
        if not self.knows_conditions:
            environ.pop(_key("If-None-Match"), None)
        what = self._fault(asked)
        if what == "reset":
            return _reset(environ)
        if what in ("stuck", "hung"):
            self.stuck.set()
            self._go_on.wait(60)
        if what == "hung":
            return _reset(environ)
        if what == "slow":
            time.sleep(0.3)
        if what.isdecimal() or what[:1].isupper():
            return _refuse(environ, start, what)
        if what in ("lost", "torn"):
            return self._broken(environ, start, what)
        return self._app(environ, start)

    def _fault(self, asked: str) -> str:
        for fault in self._faults:
            if fault[2] and re.search(fault[1], asked):
                fault[2] -= 1
                return str(fault[0])
        return ""

    def _broken(self, environ: dict[str, Any], start: Callable[..., Any], what: str) -> Iterable[bytes]:
        told: list[Any] = []
        body = b"".join(self._app(environ, lambda *answer: told.extend(answer)))
        if what == "lost":
            return _reset(environ)
        start(*told)

        def half() -> Iterable[bytes]:
            yield body[: len(body) // 2]
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

        return half()


def _key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _reset(environ: dict[str, Any]) -> Iterable[bytes]:
    """Close the connection as a process that dies does."""
    connection = environ["werkzeug.socket"]
    if not isinstance(connection, ssl.SSLSocket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _refuse(environ: dict[str, Any], start: Callable[..., Any], code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    status, name = (code, "ServiceUnavailable") if code.isdecimal() else ("403", code)
    status = "501" if code == "NotImplemented" else "400" if code == "ExpiredToken" else status
    body = ERROR.format(name, f"told to answer {code}").encode()
    start(f"{status} told", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
