"""Objects of an S3 store, by URI (`s3://bucket/key`): the only file that talks to one.

Where it is and who asks is boto3's to find: AWS_ENDPOINT_URL, AWS_CA_BUNDLE, and credentials from the environment, a
profile or the machine's role (IAM). A request that the store does not answer, or answers with an error of its own, is
sent again, a bounded number of times, and each time is told in the log; what the store refuses (4xx) is told at once.
Files go up in parts and come down in chunks, so that memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import random
import re
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from bloomery.components.core.errors import BloomeryError, ConfigError, DataError, ServiceError

logger = logging.getLogger(__name__)

SCHEME = "s3://"
PART_BYTES = 2**24
"""A file of more goes up in parts of it, each with a checksum and tried again by itself; where that would be more than
the 10,000 that S3 takes, boto3 makes them larger."""
CHUNK_BYTES = 2**20
THREADS = 4
"""Requests at once: with parts of files read as they are sent, a few MB of memory each."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Without an answer, or without a byte of it, for so long, a request has failed."""
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
"""Seconds before each further attempt, at most; some 90 in all. Of each between half and all is waited, so that pods
which failed together do not come back together."""
PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "XAmzContentChecksumMismatch",
}
"""Errors that a store tells as the client's, or without a status, and that pass."""
RENEW = "renew the credentials (the keys of the Secret, AWS_*, or the role of the service account)"
ADVICE = {
    "NoSuchBucket": "make the bucket, or correct its name",
    "ExpiredToken": RENEW,
    "TokenRefreshRequired": RENEW,
    "InvalidToken": RENEW,
    "InvalidAccessKeyId": RENEW,
    "SignatureDoesNotMatch": RENEW,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "AccessDenied": "the credentials need s3:ListBucket of the bucket and s3:GetObject, s3:PutObject, s3:DeleteObject "
    "and s3:AbortMultipartUpload of what lies under the prefix",
}
"""What to do about an error that does not pass."""
UNANSWERED = (
    "the object store did not answer in {} attempts: {}; check the network and AWS_ENDPOINT_URL; what was finished is "
    "kept, and the same run goes on from there"
)

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""What boto3 takes for the name of a bucket."""

_chance = random.Random()  # a step's own numbers follow from the global generator


def is_uri(place: str) -> bool:
    """Whether `place` lies on an S3 store. Raises: ConfigError for another store's URI, or one without a bucket."""
    if "://" not in place:
        return False
    if not place.startswith(SCHEME) or not _BUCKET.fullmatch(_split(place)[0]):
        raise ConfigError(f"{place}: expected a folder or s3://bucket/prefix")
    return True


def put(files: Mapping[str, Path]) -> None:
    """Write files, by URI. Raises: ConfigError what the store refuses, ServiceError if it does not answer; an upload in
    parts is taken back then."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=THREADS,
        preferred_transfer_client="classic",
    )
    with create_transfer_manager(_client(), config) as manager:
        waiting = {uri: manager.upload(str(file), *_split(uri)) for uri, file in files.items()}
        for uri, future in waiting.items():
            with _told(f"writing {uri}"):
                future.result()


def put_bytes(uri: str, content: bytes) -> None:
    """Write a small object, whole or not at all. Raises: as `put`."""
    bucket, key = _split(uri)
    with _told(f"writing {uri}"):
        _client().put_object(Bucket=bucket, Key=key, Body=content)


def put_text(uri: str, content: str, *, first: bool = False) -> bool:
    """Write a small object, whole or not at all; with `first` only where there is none yet. Returns whether what is
    there now is this content. Raises: as `put`.

    Where two write at once the store decides (`If-None-Match`); one that cannot leaves a moment between looking and
    writing.
    """
    from botocore.exceptions import ClientError

    there = text(uri) if first else None
    if there is not None:
        return there == content
    bucket, key = _split(uri)
    given = {"Bucket": bucket, "Key": key, "Body": content.encode()}
    with _told(f"writing {uri}"):
        try:
            _client().put_object(**given, **({"IfNoneMatch": "*"} if first else {}))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if first and code in ("PreconditionFailed", "412"):
                return text(uri) == content  # ours, where the answer to an earlier attempt was lost
            if not first or code not in ("NotImplemented", "501"):
                raise
            _client().put_object(**given)
    return True


def text(uri: str) -> str | None:
    """A small object, with marks in the place of what is no UTF-8; None where there is none. Raises: as `put`."""
    stream = io.BytesIO()
    try:
        copy(uri, stream)
    except FileNotFoundError:
        return None
    return stream.getvalue().decode(errors="replace")


def get(uri: str, file: Path, sha256: str | None = None) -> None:
    """Read an object into a file.

    Raises: DataError if there is none, or twice other bytes than `sha256` says; else as `put`.
    """
    for _ in range(2):
        with file.open("wb") as stream:
            try:
                found = copy(uri, stream)
            except FileNotFoundError:
                raise DataError(f"{uri}: there is no such object") from None
        if sha256 in (None, found):
            return
    raise DataError(f"{uri}: its sha256 is {found[:12]}…, and {str(sha256)[:12]}… was expected")


def get_all(files: Mapping[str, tuple[Path, str | None]]) -> None:
    """Read objects, by URI, each into its file and of its sha256, where that is known; folders are made.

    Raises: as `get`, of the first that fails.
    """
    for folder in {file.parent for file, _ in files.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(get, uri, file, sha256) for uri, (file, sha256) in files.items()]
        try:
            for future in waiting:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def copy(uri: str, stream: IO[bytes]) -> str:
    """Write the bytes of an object to `stream`, which is empty, going on where a connection broke; their hex sha256.

    Raises: FileNotFoundError if there is none; else as `put`.
    """
    from botocore.exceptions import FlexibleChecksumError

    bucket, key = _split(uri)
    hashed = hashlib.sha256()
    from_where: dict[str, str] = {}
    failures = 0
    with _told(f"reading {uri}", may_lack=True):
        while True:
            answer = _client().get_object(Bucket=bucket, Key=key, **from_where)
            try:
                for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                    stream.write(chunk)
                    hashed.update(chunk)
                return hashed.hexdigest()
            except _unanswered() as error:
                wait = _wait(failures, f"reading {uri}", str(error))
                if wait is None:
                    raise
                if isinstance(error, FlexibleChecksumError):  # other bytes than the store has sent
                    stream.seek(0)
                    stream.truncate()
                    hashed = hashlib.sha256()
            failures += 1
            time.sleep(wait)
            from_where = {"Range": f"bytes={stream.tell()}-", "IfMatch": answer["ETag"]} if stream.tell() else {}


def names(uri: str) -> list[str]:
    """Names of the objects under `uri`, from there. Raises: as `put`."""
    bucket, key = _split(f"{uri.rstrip('/')}/")
    with _told(f"listing {uri}"):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        return [entry["Key"].removeprefix(key) for page in pages for entry in page.get("Contents", ())]


def is_there(uri: str) -> bool:
    """Whether there is an object of that name. Raises: as `put`."""
    bucket, key = _split(uri)
    with _told(f"listing {uri}"):
        found = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)  # the shortest name comes first
        return any(entry["Key"] == key for entry in found.get("Contents", ()))


def listed(uri: str) -> list[str]:
    """Names next under `uri`: of objects, and of folders, these with a / at their end. Raises: as `put`."""
    bucket, key = _split(f"{uri.rstrip('/')}/")
    with _told(f"listing {uri}"):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, Delimiter="/")
        found = [
            entry[name].removeprefix(key)
            for page in pages
            for kind, name in (("Contents", "Key"), ("CommonPrefixes", "Prefix"))
            for entry in page.get(kind, ())
        ]
    return [name for name in found if name]


def delete(uri: str, but: Collection[str] = (), found: Collection[str] | None = None) -> None:
    """Delete the objects under `uri`, or those `found` there, except those whose name begins with one of `but`. What
    cannot be deleted is told in the log: it costs space and nothing else."""
    bucket, key = _split(f"{uri.rstrip('/')}/")
    left: list[str] = []
    try:
        gone = [name for name in (names(uri) if found is None else found) if not name.startswith(tuple(but))]
        for start in range(0, len(gone), 1000):  # the most that a request takes
            objects = [{"Key": f"{key}{name}"} for name in gone[start : start + 1000]]
            with _told(f"deleting {uri}"):
                answer = _client().delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            left += [f"{error['Key']}: {error.get('Message') or error['Code']}" for error in answer.get("Errors", ())]
    except BloomeryError as error:
        left.append(str(error))
    if left:
        logger.warning("not deleted, and no longer needed: %d under %s: %s", len(left), uri, left[0])


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key


def _client() -> Any:
    """The client of this process and of the environment that it was given."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _made(os.getpid(), settings)


@functools.lru_cache(maxsize=4)
def _made(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},  # `_again` decides
        max_pool_connections=2 * THREADS,
        tcp_keepalive=True,
    )
    try:
        with _told("asking for an object store"):
            client = Session().client("s3", config=config)
    except ValueError as error:
        raise ConfigError(f"AWS_ENDPOINT_URL: {error}; expected such as http://host:9000") from None
    client.meta.events.register("needs-retry.s3", _again)
    client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
    return client


def _refuse_redirect(response: Any, **_: Any) -> None:
    """Raise ConfigError for an answer that leads elsewhere and is no S3 store's, as of a proxy that wants https:
    botocore would ask the same address for the region of the bucket, without an end."""
    if response and response[0].status_code == 301 and response[1].get("Error", {}).get("Code") == "301":
        headers = response[0].headers
        if "x-amz-bucket-region" not in headers:
            told = f"301: go to {headers.get('location', 'another address')}"
            raise ConfigError(f"the object store refuses: {told}; AWS_ENDPOINT_URL is to name the store's own address")


def _again(response: Any, caught_exception: Any, attempts: int, operation: Any, **_: Any) -> float | None:
    """Seconds after which botocore sends a request again; None: not again."""
    if caught_exception is None:
        reason = _passing(response[1])
    else:
        passes = isinstance(caught_exception, _unanswered()) and not _distrusted(caught_exception)
        reason = str(caught_exception) if passes else ""
    return _wait(attempts - 1, operation.name, reason) if reason else None


def _passing(answer: Mapping[str, Any]) -> str:
    """The error in a store's answer, if it is one that passes; else ""."""
    status, error = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 200), answer.get("Error", {})
    passes = (status >= 500 and status != 501) or status in (408, 429) or error.get("Code") in PASSING
    return f"{error.get('Code', status)}: {error.get('Message', '')}" if passes else ""


def _unanswered() -> tuple[type[Exception], ...]:
    """What is raised where a connection could not be made, or broke, or brought other bytes than were sent."""
    from botocore.exceptions import ConnectionError, FlexibleChecksumError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError, FlexibleChecksumError


def _distrusted(error: BaseException) -> bool:
    return "certificate" in str(error).lower()


def _wait(failures: int, doing: str, reason: str) -> float | None:
    """Seconds to wait after so many failures and one more, which is told; None after the last."""
    if failures >= len(WAITS):
        return None
    wait = WAITS[failures] * _chance.uniform(0.5, 1)
    told = "object store, %s: %s; again in %.1f s (%d of %d)"
    logger.info(told, doing, reason[:200], wait, failures + 1, len(WAITS))
    return wait


@contextlib.contextmanager
def _told(doing: str, *, may_lack: bool = False) -> Iterator[None]:
    """Tell boto3's errors as ours, and where one `may_lack` an object that is not there as FileNotFoundError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code, message = (error.response["Error"].get(name, "") for name in ("Code", "Message"))
        if may_lack and code in ("NoSuchKey", "404"):  # the number where the error's own text was torn
            raise FileNotFoundError(doing) from None
        if passing := _passing(error.response):
            raise ServiceError(f"{doing}: {UNANSWERED.format(len(WAITS) + 1, passing)}") from None
        advice = ADVICE.get(code, "check the URI, AWS_ENDPOINT_URL and the credentials")
        raise ConfigError(f"{doing}: the object store refuses: {code}: {message}; {advice}") from None
    except BotoCoreError as error:
        if _distrusted(error):
            raise ConfigError(
                f"{doing}: {error}; AWS_CA_BUNDLE names the file of the authority that signed its certificate"
            ) from None
        if isinstance(error, _unanswered()):
            raise ServiceError(f"{doing}: {UNANSWERED.format(len(WAITS) + 1, error)}") from None
        raise ConfigError(f"{doing}: {error}; credentials come from AWS_*, a profile or the machine's role") from None
