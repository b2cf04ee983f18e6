"""Start a retraining once: a record under the key of its cause is made before the start, and only one process
can make it.

A process that dies between the two leaves a record without a start. Then nothing is started again, which
on-call sees in the record's status, and can undo by deleting it: a retraining too few is cheaper than two
that race for the champion.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from bloomery.components.core.artifact import write_atomically
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError, DataError, ServiceError


class Trigger(Config):
    """A retraining that was started, or is being started."""

    key: str
    """Window and champion: the reason to train."""
    time: datetime
    """When it was decided, UTC."""
    command: list[str]
    """What was run."""
    log: str
    """File with the output of the command."""
    status: Literal["starting", "started", "submitted"]
    """`started`: runs in the background as `pid`; `submitted`: the command has handed it to the cluster."""
    pid: int | None = None
    """Process id of a local run."""


class Started(NamedTuple):
    """What came of a request to start."""

    trigger: Trigger
    is_new: bool
    """False: an earlier request with this key had started it, and nothing was started now."""


def retraining_command(recipe: Path | str, workdir: Path, settings: Sequence[str], runner: str) -> list[str]:
    """The command that retrains by `recipe`, here (`local`) or on the cluster."""
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    program = shutil.which("bloomery", path=scripts)
    if program is None:
        raise ConfigError("the command 'bloomery' is not on PATH; install the package where monitoring runs")
    place = (
        ["submit", str(recipe)] if runner == "cluster" else ["run", str(recipe), "--workdir", str(workdir)]
    )
    return [program, *place, *(part for setting in settings for part in ("--set", setting))]


def start(folder: Path, key: str, command: Sequence[str], *, log: Path, wait: bool, now: datetime) -> Started:
    """Run `command` unless the key was used before; the record stands in `folder`.

    `wait=True` waits for the command to end, as for a submission; otherwise it goes on in a session of its
    own after the caller has ended.
    Raises: ServiceError if the command cannot be started or, waited for, fails; the key is then free again.
    """
    record = record_file(folder, key)
    trigger = Trigger(key=key, time=now, command=list(command), log=str(log), status="starting")
    if not _claim(record, trigger):
        return Started(read(record), is_new=False)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = process.wait() if wait else 0
    except OSError as error:
        record.unlink()
        raise ServiceError(f"cannot run {shlex.join(command)}: {error.strerror or error}") from error
    if status != 0:
        record.unlink()
        raise ServiceError(
            f"{shlex.join(command)} ended with {status}; see {log}; the next check tries again"
        )
    started = {"status": "submitted"} if wait else {"status": "started", "pid": process.pid}
    trigger = trigger.model_copy(update=started)
    write_atomically(record, trigger.model_dump_json(indent=1))
    return Started(trigger, is_new=True)


def record_file(folder: Path, key: str) -> Path:
    """Where the record of `key` stands."""
    return folder / f"{key}.json"


def read(record: Path) -> Trigger:
    """The trigger in a record. Raises: DataError if it is not one."""
    try:
        return Trigger.model_validate_json(record.read_bytes())
    except ValidationError:
        raise DataError(f"{record}: not the record of a trigger; delete it to allow a new start") from None


def started_before(folder: Path) -> list[Trigger]:
    """Every trigger recorded in `folder`, by key."""
    return [read(record) for record in sorted(folder.glob("*.json"))]


def _claim(record: Path, trigger: Trigger) -> bool:
    """True for the one caller that made the record; a link, unlike a create, appears with its content."""
    record.parent.mkdir(parents=True, exist_ok=True)
    whole = record.with_name(f".{record.name}.{uuid.uuid4().hex}")
    whole.write_text(trigger.model_dump_json(indent=1), encoding="utf-8")
    try:
        os.link(whole, record)
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    return True
