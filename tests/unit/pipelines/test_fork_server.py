"""Forked tasks are processes as others are: arguments, streams, environment, exit code."""

import os
import signal
import subprocess
import sys

import pytest

from bloomery.pipelines import fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tasks are forked on Linux alone")

PYTHON = sys.executable
PROGRAM = """
import atexit, os, sys
print(sys.argv[1:], os.environ["TOLD"], os.getcwd(), len(os.listdir("/proc/self/task")))
atexit.register(print, "at last")
print("to stderr", file=sys.stderr)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    (tmp_path / "told_what.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def go(argument):
        command = [sys.executable, "-m", "told_what", argument]
        environment = {**os.environ, "TOLD": "here"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    return go


def test_a_forked_task_is_a_process_like_another(ask, tmp_path):
    plain = ask("3")
    with fork_server.running(tmp_path / "log"):
        assert sys.executable != PYTHON
        forked = ask("3")
    assert plain.returncode == forked.returncode == 3
    assert forked.stdout == plain.stdout == f"['3'] here {tmp_path} 1\nat last\n"
    assert forked.stderr == plain.stderr == "to stderr\n"


def test_a_killed_task_ends_as_a_shell_would_say(ask, tmp_path):
    with fork_server.running(tmp_path / "log"):
        assert ask("killed").returncode == 128 + signal.SIGKILL
        assert ask("0").returncode == 0


def test_tasks_find_imported_what_they_need_once_one_works_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "look.py").write_text("import sys; print(*(m for m in sys.argv[1:] if m in sys.modules))")
    busy = f"import time\nwhile time.process_time() < {fork_server.PATIENCE} + 2: pass"
    (tmp_path / "work.py").write_text(busy)

    def task(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    with fork_server.running(tmp_path / "log"):
        task("work")  # the first task looks at the world, however little follows
        assert task("look", *fork_server.PRELOADED) == []
        task("work")
        for _ in range(600):
            found = task("look", *fork_server.PRELOADED)
            if found == [*fork_server.PRELOADED]:
                return
    raise AssertionError(f"imported at last: {found}")


def test_the_server_ends_and_the_interpreter_is_itself_again(tmp_path):
    with fork_server.running(tmp_path / "log"):
        folder = os.path.dirname(sys.executable)
    assert sys.executable == PYTHON and not os.path.exists(folder)
