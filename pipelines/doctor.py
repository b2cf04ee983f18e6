"""What a run needs of this machine, its stores and services, looked at one by one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from bloomery.components.core import s3, uploads
from bloomery.components.core.errors import BloomeryError, masked

SECONDS = 20.0
"""Time of one check."""
ANSWER_SECONDS = 5.0
FREE_BYTES = 5 * 10**9
"""Disk below which a run is likely to end without space: the quickstart takes 1 GB, a 135 M model 5."""
SHM_BYTES = 2**30
"""/dev/shm below which data-loader workers and NCCL fail beside an accelerator; a container's own is 64 MB."""


class Finding(NamedTuple):
    """What one check found."""

    what: str
    """What was looked at."""
    state: Literal["ok", "fix", "?"]
    """`?`: it cannot be looked at from here."""
    found: str
    """What is there."""
    fix: str = ""
    """What to do, where something is wrong; else why it cannot be told."""


Check = Callable[[], Iterable[Finding]]


def examined(checks: dict[str, Check], seconds: float = SECONDS) -> list[Finding]:
    """What all checks find; one that takes longer than `seconds`, or fails itself, is a finding too."""
    findings: list[Finding] = []
    for what, check in checks.items():
        given: list[Finding] = []

        def run(check: Check = check, given: list[Finding] = given, what: str = what) -> None:
            try:
                given += check()
            except BloomeryError as error:
                given.append(_wrong(what, error))
            except Exception as error:
                given.append(
                    Finding(what, "?", f"{type(error).__name__}: {str(error)[:200]}", "the check itself failed")
                )

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        late = Finding(what, "fix", f"no answer in {seconds:.0f} s", "see to the network, or to the address")
        findings += list(given) if not thread.is_alive() else [late]
    return findings


def _wrong(what: str, error: BloomeryError) -> Finding:
    told, _, advice = str(error).replace("\n", "; ").rpartition("; ")
    return Finding(what, "fix", told or advice, advice if told else "")


def of_this_machine(bucket: str | None, webhook: str | None) -> dict[str, Check]:
    """The checks of where this process runs, and of what it reaches."""
    return {
        "versions": versions,
        "GPU": gpus,
        "disk": disks,
        "shm": shm,
        "store": lambda: store(bucket),
        "credentials": lambda: credentials(bucket),
        "MLflow": mlflow,
        "webhook": lambda: reachable(webhook),
    }


def versions() -> Iterable[Finding]:
    """Whether every package is there in a version that ours asks for."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("bloomery") or ()]
    ours = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in ours:
        try:
            have = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            have = ""
        if not have or not one.specifier.contains(have, prereleases=True):
            wrong.append(f"{one.name} {have or 'missing'}, wanted {one.specifier or 'any'}")
    if wrong:
        yield Finding("versions", "fix", "; ".join(wrong), "pip install --constraint constraints.txt bloomery")
    else:
        told = ", ".join(f"{name} {metadata.version(name)}" for name in ("bloomery", "kfp", "torch", "transformers"))
        yield Finding("versions", "ok", f"{told}; {len(ours)} packages as required")


def gpus() -> Iterable[Finding]:
    """The NVIDIA devices, and whether torch was built for them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("GPU", "ok", "none (no nvidia-smi): what runs here runs on CPUs")
        return
    asked = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_SECONDS * 2, check=False)
    told = "; ".join(answer.stdout.strip().splitlines())
    if answer.returncode or not told:
        yield Finding("GPU", "fix", f"nvidia-smi: {(answer.stderr or told).strip()[:200]}", "install the driver anew")
    elif metadata.version("torch").endswith("+cpu"):
        yield Finding(
            "GPU", "fix", f"{told}; torch is built for CPUs", "install torch from https://download.pytorch.org"
        )
    else:
        yield Finding("GPU", "ok", told)


def disks() -> Iterable[Finding]:
    """Free space where runs, fetched files and temporary ones lie."""
    for place in dict.fromkeys((Path.cwd(), uploads.cache_folder(), Path(tempfile.gettempdir()))):
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        found = f"{place}: {free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield Finding("disk", "fix", f"{place}: cannot be written", "choose another by --workdir or BLOOMERY_CACHE")
        elif free < FREE_BYTES:
            yield Finding("disk", "fix", found, f"free some, or choose another place: {FREE_BYTES / 1e9:.0f} GB do")
        else:
            yield Finding("disk", "ok", found)


def shm() -> Iterable[Finding]:
    """The memory that processes share."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding("shm", "ok", "no /dev/shm on this system")
        return
    size = shutil.disk_usage(place).total
    needs = size < SHM_BYTES and shutil.which("nvidia-smi") is not None
    advice = "start the container with --shm-size 8g; in a pod `resources.shm_gib` mounts it" if needs else ""
    yield Finding("shm", "fix" if needs else "ok", f"{size / 2**30:.1f} GiB", advice)


def store(bucket: str | None) -> Iterable[Finding]:
    """Whether an object can be written, read and deleted."""
    if not bucket:
        yield Finding("store", "?", "no bucket named", "name one by --bucket s3://bucket/prefix or BLOOMERY_BUCKET")
        return
    s3.is_uri(bucket)
    folder, text = f"{bucket.rstrip('/')}/doctor/{uuid.uuid4().hex}", "written by bloomery doctor"
    s3.put_text(f"{folder}/probe", text)
    read = s3.text(f"{folder}/probe")
    s3.delete(folder)
    where = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    if read != text:
        yield Finding("store", "fix", f"{bucket} at {where} gives back other bytes", "see to the store or its proxy")
    elif s3.names(folder):
        yield Finding("store", "fix", f"{bucket} at {where}: cannot delete", "grant s3:DeleteObject under the prefix")
    else:
        yield Finding("store", "ok", f"{bucket} at {where}: written, read and deleted")


def credentials(bucket: str | None) -> Iterable[Finding]:
    """Where credentials come from; never what they are."""
    from boto3.session import Session

    found = Session().get_credentials()
    if found is not None:
        yield Finding("credentials", "ok", f"object store: from {found.method}")
    elif bucket:
        yield Finding("credentials", "fix", "object store: none", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    else:
        yield Finding("credentials", "ok", "object store: none, and no bucket is named")
    told = "set" if os.environ.get("HF_TOKEN") else "not set: gated models of the hub cannot be fetched"
    yield Finding("credentials", "ok", f"HF_TOKEN: {told}")


def mlflow() -> Iterable[Finding]:
    """Whether the tracking server answers, and takes the user."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    shown = masked(uri)
    if not uri.startswith(("http://", "https://")):
        yield Finding("MLflow", "ok", shown or "MLFLOW_TRACKING_URI is not set: each workdir has a SQLite file")
        return
    import requests

    given = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    user, password, token = given
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            params={"max_results": 1},
            auth=(user, password) if user else None,
            headers={"Authorization": f"Bearer {token}"} if token and not user else {},
            timeout=ANSWER_SECONDS,
        )
    except requests.RequestException as error:
        reason = f"{shown} does not answer: {type(error).__name__}"
        yield Finding("MLflow", "fix", reason, "start it, or correct MLFLOW_TRACKING_URI")
        return
    if answer.ok:
        yield Finding("MLflow", "ok", f"{shown} answers")
    else:
        is_refused = answer.status_code in (401, 403)
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if is_refused else "correct the address"
        yield Finding("MLflow", "fix", f"{shown} answers {answer.status_code}", advice)


def reachable(webhook: str | None) -> Iterable[Finding]:
    """Whether the host of alerts answers; nothing is sent."""
    if not webhook:
        yield Finding("webhook", "ok", "none named (monitoring.alerts.webhook): nobody is told of drift")
        return
    address = os.environ.get(webhook, "")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        told = f"the environment variable {webhook} holds no http or https address"
        yield Finding("webhook", "fix", told, "set the variable, or correct monitoring.alerts.webhook")
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname, port), timeout=ANSWER_SECONDS):
            yield Finding("webhook", "ok", f"{parts.hostname}:{port} takes connections; nothing was sent")
    except OSError as error:
        yield Finding("webhook", "fix", f"{parts.hostname}:{port}: {error}", "correct the address, or open the network")


def told(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding, and below it what to do."""
    lines = []
    for one in findings:
        lines.append(f"{one.state:<4}{one.what:<13}{one.found}")
        lines += [f"{'':<17}→ {one.fix}"] if one.fix else []
    return lines
