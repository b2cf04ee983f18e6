"""Forked tasks are processes as others are: arguments, streams, environment, exit code."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from bloomery.components.core import interpreter
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


@pytest.fixture(autouse=True)
def _no_server_is_given(monkeypatch):
    monkeypatch.delenv(interpreter.PYTHON, raising=False)


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
    with fork_server.running():
        assert sys.executable != PYTHON
        forked = ask("3")
    assert plain.returncode == forked.returncode == 3
    assert forked.stdout == plain.stdout == f"['3'] here {tmp_path} 1\nat last\n"
    assert forked.stderr == plain.stderr == "to stderr\n"


def test_a_killed_task_ends_as_a_shell_would_say(ask, tmp_path, monkeypatch):
    folder = tmp_path / ("of-a-long-name" * 9)  # longer than an address of a socket may be
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with fork_server.running():
        assert ask("killed").returncode == 128 + signal.SIGKILL
        assert ask("0").returncode == 0


def test_tasks_find_imported_what_they_need_once_one_works_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "look.py").write_text("import sys; print(*(m for m in sys.argv[1:] if m in sys.modules))")
    busy = f"import time\nwhile time.process_time() < {fork_server.PATIENCE} + 1: pass"
    (tmp_path / "work.py").write_text(busy)

    def task(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    with fork_server.running():
        for _ in range(fork_server.FIRST):  # which work in every run, however little follows
            task("work")
        assert task("look", *fork_server.PRELOADED) == []
        task("work")
        for _ in range(600):
            found = task("look", *fork_server.PRELOADED)
            if found == [*fork_server.PRELOADED]:
                return
    raise AssertionError(f"imported at last: {found}")


def test_a_task_has_the_code_of_the_steps_and_knows_what_they_depend_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "look.py").write_text(
        "import sys; from bloomery.components.core import sources, step\n"
        "print('bloomery.components.sft.step' in sys.modules, sources._imports.cache_info().misses)\n"
        "step.code_digest(sys.modules['bloomery.components.sft.step'].run); print(step.code_digest.cache_info().hits)"
    )
    with fork_server.running():
        told = subprocess.run([sys.executable, "-m", "look"], capture_output=True, text=True, check=True).stdout.split()
    assert told[0] == "True" and int(told[1]) > 50 and told[2] == "1"


INTERRUPTED = """
import os, signal, subprocess, sys
from bloomery.pipelines import fork_server
with fork_server.running():
    task = subprocess.Popen([sys.executable, "-m", "waits"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert task.stdout.readline() == b"here\\n"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.killpg(0, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    after = subprocess.run([sys.executable, "-m", "told_what", "0"], env={**os.environ, "TOLD": ""})
    print(task.wait(10) != 0, after.returncode)
"""


def test_an_interrupt_at_the_terminal_ends_tasks_and_not_the_server(tmp_path, ask):
    (tmp_path / "waits.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    done = subprocess.run([PYTHON, "-c", INTERRUPTED], capture_output=True, text=True, start_new_session=True)
    assert done.stdout.splitlines()[-1] == "True 0", done.stderr


WAITS = """
import os, signal, sys, time
def end(*_):
    time.sleep(0.5)
    print("checkpoint", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # `timeout` does both
def test_sigterm_ends_a_run_when_its_tasks_have_ended_and_been_heard(send, tmp_path, ask):
    (tmp_path / "waits.py").write_text(WAITS)
    run = """if True:
        import subprocess, sys
        from bloomery.pipelines import fork_server
        with fork_server.running() as end_tasks, fork_server.interruptible(end_tasks):
            subprocess.run([sys.executable, "-m", "waits"])
    """
    ended = subprocess.Popen(
        [PYTHON, "-c", run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    task = int(ended.stdout.readline())
    send(ended.pid, signal.SIGTERM)
    assert ended.wait(30) == 143 and not os.path.exists(f"/proc/{task}")
    assert ended.stdout.read() == "checkpoint\n" and ended.stderr.read().startswith("interrupted; ")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_alone_takes_its_tasks_along(kind, tmp_path, ask):
    (tmp_path / "waits.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    run = """if True:
        import signal, subprocess, sys
        from bloomery.pipelines import fork_server
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background shells let it be ignored
        with fork_server.running():
            task = subprocess.Popen([sys.executable, "-m", "waits"])
            task.wait()
    """
    ended = subprocess.Popen([PYTHON, "-c", run], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    task = int(ended.stdout.readline())
    ended.send_signal(kind)
    ended.wait(30)
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{task}") and time.monotonic() < until:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{task}")


def test_the_server_ends_and_the_interpreter_is_itself_again(caplog):
    with fork_server.running():
        folder = os.path.dirname(sys.executable)
        assert os.environ[interpreter.PYTHON] == sys.executable
    assert sys.executable == PYTHON and not os.path.exists(folder) and not caplog.messages
    assert interpreter.PYTHON not in os.environ


def test_a_server_that_the_environment_names_is_asked_and_stays(ask, monkeypatch):
    with fork_server.serving() as (program, _):
        monkeypatch.setenv(interpreter.PYTHON, program)
        for _ in range(2):
            with fork_server.running():
                assert sys.executable == program
                assert ask("3").returncode == 3
        assert (sys.executable, os.environ[interpreter.PYTHON]) == (PYTHON, program)


def test_a_server_that_died_has_its_last_words_told(tmp_path, monkeypatch, caplog):
    words = "import logging; logging.getLogger('torchao').warning('no kernels'); raise SystemExit('the disk is full')"
    (tmp_path / "mlflow.py").write_text(words)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with fork_server.running():
        assert subprocess.run([sys.executable, "-m", "this"], capture_output=True).returncode == 1
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # its sockets are closed before it has ended
    assert "has died: the disk is full" in caplog.text
