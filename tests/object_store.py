"""An S3 store over HTTP and in memory: as much of it as boto3 and s3fs ask for, and a record of what they sent."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class ObjectStore(ThreadingHTTPServer):
    """Objects by `bucket/key`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.got: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("x-amz-decoded-content-length"):  # in chunks, each after its length in hex
            whole, rest = b"", data
            while (length := int(rest.split(b"\r\n", 1)[0].split(b";")[0], 16)) > 0:
                start = rest.index(b"\r\n") + 2
                whole, rest = whole + rest[start : start + length], rest[start + length + 2 :]
            data = whole
        self.server.objects[self.key] = data
        self.server.sent.append(self.key)
        self.answer(200, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for key in re.findall("<Key>(.*?)</Key>", body):  # DeleteObjects
            self.server.objects.pop(f"{self.key.partition('/')[0]}/{unescape(key)}", None)
        self.answer(200, b"<DeleteResult></DeleteResult>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if "list-type" in query:
            return self.answer(200, self.listed(query))
        if self.key not in self.server.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        data = self.server.objects[self.key]
        if self.command == "GET":
            self.server.got.append(self.key)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            return self.answer(206, data[int(first) : int(last or len(data)) + 1], data)
        return self.answer(200, data, data)

    def listed(self, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        bucket = self.key.partition("/")[0]
        objects = {key.partition("/")[2]: data for key, data in self.server.objects.items()}
        keys = [key for key in sorted(objects) if key.startswith(prefix) and f"{bucket}/{key}" in self.server.objects]
        rows, folders = [], set()
        for key in keys:
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size><ETag>{_tag(objects[key])}</ETag>"
                "<LastModified>2026-11-28T10:00:00.000Z</LastModified></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        told = f"<IsTruncated>false</IsTruncated><KeyCount>{len(rows)}</KeyCount>{''.join(rows)}"
        return f"<ListBucketResult>{told}</ListBucketResult>".encode()

    def answer(self, status: int, body: bytes, whole: bytes | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", _tag(body if whole is None else whole))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
