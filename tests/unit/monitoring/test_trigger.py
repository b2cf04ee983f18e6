"""Exactly once: many at once, and killed at every line."""

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bloomery.components.core.errors import DataError, ServiceError
from bloomery.monitoring import trigger
from bloomery.monitoring.trigger import folder_of, opened, retraining_command
from bloomery.pipelines import keys

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def running(workdir: Path, key: str = "w1", seconds: float = 0.0) -> list[str]:
    """A command that does what `bloomery run --key` does: it uses the key, or refuses, and its start is recorded."""
    code = (
        "import sys, time; from pathlib import Path; from bloomery.pipelines import keys\n"
        f"try: keys.claim(Path({str(workdir)!r}), {key!r}, 'run-1')\n"
        "except Exception as error: sys.exit(2)\n"
        f"open({str(workdir / 'starts')!r}, 'a').write('x'); time.sleep({seconds})"
    )
    return [sys.executable, "-c", code]


def appending(path: Path) -> list[str]:
    return [sys.executable, "-S", "-c", f"open({str(path)!r}, 'a').write('x'); print('done')"]


def start(workdir: Path, command: list[str], key: str = "w1", *, wait: bool = False) -> trigger.Started:
    with opened(workdir) as triggers:
        return triggers.start(key, command, log=workdir / "log", wait=wait, now=NOW)


def wait_until_ended(workdir: Path, key: str = "w1") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with opened(workdir) as triggers:
            known = triggers.of(key)
            if known is None or not triggers.is_running(known):
                return
        time.sleep(0.01)
    raise AssertionError(f"{key} runs still")


def starts(workdir: Path) -> int:
    return len((workdir / "starts").read_text()) if (workdir / "starts").exists() else 0


def test_a_key_submits_once(tmp_path):
    marks = tmp_path / "marks"
    first = start(tmp_path, appending(marks), wait=True)
    second = start(tmp_path, appending(marks), wait=True)
    assert marks.read_text() == "x"
    assert (first.is_new, second.is_new) == (True, False)
    assert second.trigger == first.trigger and first.trigger.status == "submitted" and first.trigger.attempts == 1
    assert (tmp_path / "log").read_text() == "done\n"
    start(tmp_path, appending(marks), "w2", wait=True)
    assert marks.read_text() == "xx"
    with opened(tmp_path) as triggers:
        assert [item.key for item in triggers.all()] == ["w1", "w2"]


def test_a_local_run_goes_on_in_the_background_and_is_known_to_run(tmp_path):
    started = start(tmp_path, running(tmp_path, seconds=0.5))
    assert started.is_new and started.trigger.status == "started" and started.trigger.pid > 0
    with opened(tmp_path) as triggers:
        assert triggers.is_running(started.trigger)
        assert not triggers.start("w1", running(tmp_path), log=tmp_path / "log", wait=False, now=NOW).is_new
    wait_until_ended(tmp_path)
    with opened(tmp_path) as triggers:
        assert triggers.is_settled(started.trigger) and not triggers.is_running(started.trigger)
    assert not start(tmp_path, running(tmp_path)).is_new
    assert starts(tmp_path) == 1


def test_a_run_that_ended_before_it_used_its_key_is_started_again(tmp_path):
    log = tmp_path / "log"
    start(tmp_path, [sys.executable, "-c", "raise SystemExit(7)"])
    wait_until_ended(tmp_path)
    with opened(tmp_path) as triggers:
        assert not triggers.is_settled(triggers.of("w1"))
        again = triggers.start("w1", ["is not used: the recorded command is"], log=log, wait=False, now=NOW)
    assert again.is_new and again.trigger.attempts == 2 and "SystemExit(7)" in again.trigger.command[-1]


@pytest.mark.parametrize("command", [["no-such-program"], [sys.executable, "-c", "raise SystemExit(7)"]])
def test_a_failed_submission_is_tried_again(tmp_path, command):
    for attempt in (1, 2):
        with pytest.raises(ServiceError):
            start(tmp_path, command, wait=True)
        with opened(tmp_path) as triggers:
            assert triggers.of("w1").attempts == attempt and triggers.of("w1").status == "starting"


def test_a_hundred_at_once_start_one(tmp_path):
    children = []
    for _ in range(100):
        child = os.fork()
        if child == 0:
            try:
                start(tmp_path, running(tmp_path, seconds=0.2))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    wait_until_ended(tmp_path)
    assert starts(tmp_path) == 1


def test_killed_at_every_line_it_is_never_lost_and_never_doubled(tmp_path):
    """A checker is killed at the n-th line that it runs in trigger.py, for every n, and the next ones follow."""
    outcomes = []
    for line in range(1, 1000):
        workdir = tmp_path / str(line)
        workdir.mkdir()
        if not start_killed_at(line, workdir):
            break
        with opened(workdir) as triggers:
            known = triggers.of("w1")
        before = "nothing" if known is None else known.status
        start(workdir, running(workdir))  # the next check
        wait_until_ended(workdir)
        start(workdir, running(workdir))  # and one after the run has ended
        wait_until_ended(workdir)
        assert starts(workdir) == 1, f"killed at line event {line}"
        outcomes.append(before)
    # The kill hit before the record, between record and start, and after the record of the start.
    assert {"nothing", "starting", "started"} <= set(outcomes) and len(outcomes) > 25


def start_killed_at(line: int, workdir: Path) -> bool:
    """Start in a child that kills itself at its n-th line of trigger.py; False if it ended before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_filename != trigger.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            start(workdir, running(workdir))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_broken_record_is_named(tmp_path):
    folder_of(tmp_path).mkdir(parents=True)
    (folder_of(tmp_path) / "w1.json").write_text("{")
    with opened(tmp_path) as triggers, pytest.raises(DataError, match="delete it to allow a new start"):
        triggers.all()


def test_commands_of_both_runners(tmp_path):
    local = retraining_command("quickstart", tmp_path, ["dpo.beta=0.2"], "local", "k")
    assert local[1:] == ["run", "quickstart", "--workdir", str(tmp_path), "--key", "k", "--set", "dpo.beta=0.2"]
    assert retraining_command("quickstart", tmp_path, [], "cluster", "k")[1:] == ["submit", "quickstart", "--key", "k"]


def test_the_key_of_a_run_names_it(tmp_path):
    assert keys.run_of(tmp_path, "w1") is None
    keys.claim(tmp_path, "w1", "20250301-120000-shop")
    assert keys.run_of(tmp_path, "w1") == "20250301-120000-shop"
