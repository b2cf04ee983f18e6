"""A key is used by one run: whoever asks again learns which run that was."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path

from bloomery.components.core.errors import ConfigError

_KEY = re.compile(r"\w[\w.-]{0,199}", re.ASCII)


def check_key(key: str) -> str:
    """`key`, if it can name a file and a run. Raises: ConfigError."""
    if not _KEY.fullmatch(key):
        raise ConfigError(f"--key {key!r}: expected up to 200 letters, digits, '_', '-' and '.', the first no mark")
    return key


def claim(workdir: Path, key: str, run: str) -> None:
    """Use `key` for the run named `run`: makes `workdir/keys/<key>`, whole or not at all.

    Raises: ConfigError naming the run that used the key before.
    """
    target = file_of(workdir, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(f".{key}.{uuid.uuid4().hex}")
    with whole.open("w", encoding="utf-8") as stream:
        stream.write(run)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(whole, target)  # a link, unlike a create, appears with its content, and for one alone
    except FileExistsError:
        raise ConfigError(
            f"--key {key}: the run {run_of(workdir, key)} has used it, and a key starts one run; see `bloomery show`, "
            f"or delete {target} to allow a second"
        ) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            whole.unlink()


def run_of(workdir: Path, key: str) -> str | None:
    """Name of the run that used `key`, or None."""
    try:
        return file_of(workdir, key).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def file_of(workdir: Path, key: str) -> Path:
    """Where the name of the run that used `key` stands."""
    return workdir / "keys" / check_key(key)
