"""Start a retraining exactly once for its key, whatever is killed and when.

Three things make it so. The record of the key is written before anything is started, so a decision is never lost.
The command, which is given the key, uses it before it does anything else and refuses a used one (`bloomery run
--key`, `bloomery submit --key`), so starting it again never doubles a run. And one process at a time may read the
records and start: the lock of the folder is held from the look to the start, and the lock of the key is inherited by
the started process and lasts as long as it, so that "has it ended?" needs no process id, which another process may
have by then.

    recorded → started: holds the key's lock → the key is used: settled, never started again
         ↑________________________↓ ended, and the key is not used: a check starts it again
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pydantic import ValidationError

from bloomery.components.core.artifact import write_atomically
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError, DataError, ServiceError
from bloomery.monitoring.home import Home
from bloomery.pipelines import keys, kubeflow


class Trigger(Config):
    """A retraining that was decided."""

    key: str
    """Champion and window: the reason to train."""
    time: datetime
    """When it was decided, UTC."""
    command: list[str]
    """What is run; it holds the key."""
    log: str
    """File with the output of the command."""
    status: Literal["starting", "started", "submitted"]
    """`started`: runs, or ran, in the background as `pid`; `submitted`: the command has handed it to the cluster."""
    pid: int | None = None
    """Process id of a local run."""
    attempts: int = 0
    """How often the command was started; more than once where it ended before it had used its key."""


class Started(NamedTuple):
    """What came of a request to start."""

    trigger: Trigger
    is_new: bool
    """True if this call started the command."""


def retraining_command(
    recipe: Path | str, workdir: Path, settings: Sequence[str], runner: Literal["local", "cluster"], key: str
) -> list[str]:
    """The command line that retrains once for `key`: `bloomery run`, or `bloomery submit` for a cluster.

    Raises: ConfigError if the command is not installed.
    """
    place = ["submit", str(recipe)] if runner == "cluster" else ["run", str(recipe), "--workdir", str(workdir)]
    return [program(), *place, "--key", key, *(part for setting in settings for part in ("--set", setting))]


def program() -> str:
    """The `bloomery` command of this installation. Raises: ConfigError if it is not installed."""
    beside = Path(sysconfig.get_path("scripts")) / "bloomery"
    found = str(beside) if beside.is_file() else shutil.which("bloomery")
    if found is None:
        raise ConfigError("the command 'bloomery' is not on PATH; install the package where monitoring runs")
    return found


class Triggers:
    """The triggers of a workdir, open to one process at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._workdir = home.workdir
        self._folder = folder_of(home.workdir)

    def all(self) -> list[Trigger]:
        """Every recorded trigger, by key. Raises: DataError for a record that cannot be read."""
        return [self._read(record) for record in sorted(self._folder.glob("*.json"))]

    def of(self, key: str) -> Trigger | None:
        """The trigger of `key`, or None."""
        record = self._folder / f"{key}.json"
        return self._read(record) if record.exists() else None

    def is_settled(self, trigger: Trigger) -> bool:
        """True once its run exists: nothing is started for its key again."""
        return trigger.status == "submitted" or keys.run_of(self._workdir, trigger.key) is not None

    def is_running(self, trigger: Trigger) -> bool:
        """True while the started command, on this machine, has not ended."""
        with (self._folder / f"{trigger.key}.lock").open("ab") as lock:
            return not _locked(lock)

    def start(self, key: str, command: Sequence[str], *, log: Path, wait: bool, now: datetime) -> Started:
        """Run `command` unless a run exists for `key`, or the command runs; the record of `key` is made first.

        A recorded trigger keeps the command it was recorded with. `wait=True` waits for the command to end, as for a
        submission; otherwise it goes on in a session of its own after the caller has ended.
        Raises: ServiceError if the command cannot be started or, waited for, fails; the next call tries again.
        """
        trigger = self.of(key)
        if trigger is None:
            told = self._home.told(log)
            trigger = Trigger(key=key, time=now, command=list(command), log=told, status="starting")
            self._write(trigger)
            self._home.save()
        with (self._folder / f"{key}.lock").open("ab") as lock:
            if not _locked(lock) or self.is_settled(trigger):
                return Started(trigger, is_new=False)
            trigger = self._run(trigger, log, lock, wait)
        return Started(trigger, is_new=True)

    def _run(self, trigger: Trigger, log: Path, lock: IO[bytes], wait: bool) -> Trigger:
        tried = {"attempts": trigger.attempts + 1}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    trigger.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={name: value for name, value in os.environ.items() if name != kubeflow.RUNTIME},
                    pass_fds=[lock.fileno()],
                )
                status = process.wait() if wait else 0
        except OSError as error:
            self._write(trigger.model_copy(update=tried))
            raise ServiceError(f"cannot run {shlex.join(trigger.command)}: {error.strerror or error}") from error
        if status != 0:
            self._write(trigger.model_copy(update=tried))
            raise ServiceError(
                f"{shlex.join(trigger.command)} ended with {status}; see {trigger.log}; the next check tries again"
            )
        outcome = {"status": "submitted"} if wait else {"status": "started", "pid": process.pid}
        trigger = trigger.model_copy(update={**tried, **outcome})
        self._write(trigger)
        return trigger

    def _write(self, trigger: Trigger) -> None:
        write_atomically(self._folder / f"{trigger.key}.json", trigger.model_dump_json(indent=1))

    def _read(self, record: Path) -> Trigger:
        try:
            return Trigger.model_validate_json(record.read_bytes())
        except ValidationError:
            raise DataError(f"{record}: not the record of a trigger; delete it to allow a new start") from None


def folder_of(workdir: Path) -> Path:
    """Where the records of a workdir stand."""
    return workdir / "monitoring" / "triggers"


@contextlib.contextmanager
def opened(workdir: Path | Home) -> Iterator[Triggers]:
    """The triggers of `workdir`, when no other process of this machine has them open."""
    home = workdir if isinstance(workdir, Home) else Home(workdir)
    folder = folder_of(home.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Triggers(home)


def _locked(lock: IO[bytes]) -> bool:
    """True if the lock was free; it is then held until the file is closed here and in every process that got it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
