"""The human hold: no retraining starts until it is lifted. Who, when and why is kept.

The audit log is the state: the last line of `monitoring/holds.jsonl` tells what holds now.
"""

from __future__ import annotations

import getpass
import os
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError, DataError


class Hold(Config):
    """A line of the audit log: retraining was held, or let go again."""

    is_held: bool
    """False: the hold before was lifted."""
    who: str
    """Name of the user on that machine, or as given."""
    time: datetime
    """When, UTC."""
    reason: str
    """Why."""
    until: datetime | None = None
    """When the hold ends by itself; None: when someone lifts it."""

    def holds(self, now: datetime) -> bool:
        """True while it stands."""
        return self.is_held and (self.until is None or now < self.until)


def log_file(workdir: Path) -> Path:
    """Where the audit log of a workdir stands."""
    return workdir / "monitoring" / "holds.jsonl"


def record(workdir: Path, entry: Hold) -> None:
    """Append to the audit log. Raises: ConfigError if `until` has passed already."""
    if entry.until is not None and entry.until <= entry.time:
        raise ConfigError(f"--until {entry.until.isoformat()}: has passed; it is {entry.time.isoformat()}")
    file = log_file(workdir)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as stream:  # one write: lines of two people at once do not mix
        stream.write(entry.model_dump_json().encode() + b"\n")
        os.fsync(stream.fileno())


def newest(workdir: Path) -> Hold | None:
    """The last entry of the audit log, or None. Raises: DataError if it cannot be read: that may be a hold."""
    file = log_file(workdir)
    if not file.is_file():
        return None
    lines = file.read_bytes().splitlines()
    try:
        return Hold.model_validate_json(lines[-1]) if lines else None
    except ValidationError:
        raise DataError(
            f"{file} line {len(lines)}: not an entry of a hold; `bloomery monitor hold` or `resume` adds one"
        ) from None


def whoever() -> str:
    """The name of the user who runs this process, or its number where it has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
