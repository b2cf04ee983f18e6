import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.monitoring.watch import watch


def test_it_tells_what_changed_and_outlives_a_store_that_does_not_answer():
    told = []
    looks = iter(["none: a", "none: a", ServiceError("s3 is away"), "none: a"])

    def look():
        found = next(looks, None)
        if found is None:
            os.kill(os.getpid(), signal.SIGTERM)
            return "none: a"
        if isinstance(found, Exception):
            raise found
        return found

    before = signal.getsignal(signal.SIGTERM)
    watch(look, 0.01, told.append)
    assert told == ["none: a", "not checked: s3 is away", "none: a"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_wrong_recipe_ends_it():
    def look():
        raise ConfigError("no such recipe")

    with pytest.raises(ConfigError):
        watch(look, 0.01, print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_look_that_is_under_way_is_ended(tmp_path, number):
    """As a process of its own: the signal comes while it looks, and again while it would wait an hour."""
    marks = tmp_path / "marks"
    code = (
        "import time; from pathlib import Path; from bloomery.monitoring.watch import watch\n"
        f"marks = Path({str(marks)!r})\n"
        "def look():\n"
        "    marks.write_text('begun'); time.sleep(0.5); marks.write_text('ended'); return 'x'\n"
        "watch(look, 3600, print)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    _wait_for(marks, "begun")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and marks.read_text() == "ended" and output == b"x\n"


def _wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.exists() and file.read_text() == text:
            return
        time.sleep(0.02)
    raise AssertionError(f"{file} never said {text}")
