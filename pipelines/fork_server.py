"""The tasks of a run on this machine as forks of one process that has imported what they need.

Importing torch, transformers, TRL and MLflow takes 10 CPU seconds, and a run has some twenty tasks. kfp.local starts a
task by the `python3` of its command, for which it takes `sys.executable`; within `running` that is a script that asks
the server to fork and to go on as the task: with its arguments, environment, working directory and output, in a process
of its own, which ends as it would have ended. Nothing of a task comes back into the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from bloomery.components.core import interpreter
from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.step import configure_logging
from bloomery.infra import surroundings

logger = logging.getLogger(__name__)

NEEDED = ("kfp.dsl.executor_main", "mlflow.store.tracking.sqlalchemy_store")
"""What every task needs, beside the steps' own code."""
PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "sklearn.metrics",
)
"""In the order in which the tasks of a run come to need them. Imported one by one between two tasks, once a task after
the FIRST takes longer than PATIENCE: where all results are reused nobody needs them, and a task that asks while one is
imported has to wait."""
FIRST = 2
"""Tasks that work in every run, however little is new: one opens the run in MLflow, preflight looks at the world."""
PATIENCE = 2.0
"""CPU seconds, which say the same on a busy machine; a task that reuses its result takes some tenths of one."""
ENDING_SECONDS = 30.0
"""How long the tasks of a run that is interrupted may take to end: a training writes a checkpoint within 25 s."""
LOOK_SECONDS = 0.5
"""How often the server looks at what its tasks have taken, while that matters."""

ASK = """#!{python} -IS
import json, os, socket, sys

asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(f"/proc/self/fd/{{os.open({folder!r}, os.O_RDONLY)}}/server")
    socket.send_fds(server, [len(asked).to_bytes(8, "little")], [1, 2])
    server.sendall(asked)
    ended = server.recv(1)
sys.exit(ended[0] if ended else 1)
"""


@contextlib.contextmanager
def running() -> Iterator[Callable[[], None]]:
    """Let `sys.executable`, and `PYTHON` of the environment, be a `python3 -m …` that forks a server: the one that the
    environment names, which stays, else one that ends with the context. Yields what ends the tasks of the latter.

    On Linux alone: elsewhere system libraries do not stand a fork after they were loaded, and nothing changes.
    """
    if sys.platform != "linux":
        yield end_none
        return
    python, given = sys.executable, os.environ.get(interpreter.PYTHON)
    with contextlib.nullcontext((given, end_none)) if given else serving() as (program, end_tasks):
        sys.executable = os.environ[interpreter.PYTHON] = program
        try:
            yield end_tasks
        finally:
            sys.executable = python
            if not given:
                del os.environ[interpreter.PYTHON]


def end_none() -> None:
    """There are no tasks of its own to end."""


@contextlib.contextmanager
def interruptible(end_tasks: Callable[[], None]) -> Iterator[None]:
    """End this process as interrupted on Ctrl-C and, with its exit code 143, on SIGTERM, which may be sent to it alone:
    its tasks are ended first, and so what a training last says is told, and where it writes to is still there."""
    caught = signal.SIGINT

    def stop(number: int, _: Any) -> None:
        nonlocal caught
        caught = signal.Signals(number)
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
        end_tasks()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the stages that are finished", file=sys.stderr)
        sys.exit(128 + caught)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Callable[[], None]]]:
    """The program that asks a server, which ends with the context or with this process, and what ends its tasks; what
    it had to say is told if it has died before."""
    python = sys.executable
    ours, its = socket.socketpair()
    ours.settimeout(ENDING_SECONDS)
    with (
        ours,
        tempfile.TemporaryDirectory(prefix="bloomery-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
        tempfile.TemporaryFile("w+") as output,
    ):
        program, opened = Path(folder) / "python3", os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{opened}/server")  # an address has 107 bytes, and TMPDIR may have more
        os.close(opened)
        listener.listen()
        program.write_text(ASK.format(python=python, folder=folder))
        program.chmod(0o700)
        command = [python, "-m", __name__, str(listener.fileno())]
        server = subprocess.Popen(
            command,
            stdin=its.fileno(),
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            env={**os.environ, **surroundings.missing()},
        )

        def end_tasks() -> None:
            try:
                ours.sendall(b".")
                ours.recv(1)
            except OSError:  # it has died, or they have had their time
                server.kill()

        its.close()
        listener.close()  # of the server alone: who asks it when it has died is refused
        try:
            yield str(program), end_tasks
        except BaseException:
            end_tasks()
            raise
        finally:
            if server.poll():
                output.seek(0)
                logger.warning("the process that forks tasks has died: %s", output.read().strip() or "no word")
            server.kill()  # it holds nothing, and its tasks have ended, or had their time
            server.wait()


def serve(listener: socket.socket) -> None:
    """Fork for everyone who asks, and tell him how it ended, until stdin is closed, as the death of the run does, too.
    The tasks that are at work then are told to end, as they are when something comes from there, which is answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run that is interrupted has yet to be closed
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as is one whose whole group is told to end
    for name in NEEDED:  # before anybody is answered: a fork would have to import it again
        importlib.import_module(name)
    _read_steps()
    waiting: list[str] = []
    later = list(PRELOADED)
    asking: dict[int, tuple[ForkProcess, socket.socket]] = {}
    num_tasks = 0
    while True:
        timeout = 0 if waiting else LOOK_SECONDS if later and asking and num_tasks > FIRST else None
        ready, _, _ = select.select([listener, sys.stdin, *asking], [], [], timeout)
        if sys.stdin in ready:
            for process, _ in asking.values():
                process.terminate()
            for process, _ in asking.values():
                process.join()
            if not os.read(0, 1):
                return
            os.write(0, b".")
            continue
        if not ready and not waiting:
            if any(_cpu_seconds(process) > PATIENCE for process, _ in asking.values()):
                waiting, later = later, []
        elif not ready:
            importlib.import_module(waiting.pop(0))
            if "torch" in sys.modules and sys.modules["torch"].version.cuda:
                waiting.clear()  # a driver that an import has woken cannot be used by a fork
        for sentinel in asking.keys() & {*ready}:
            process, connection = asking.pop(sentinel)
            process.join()
            code = process.exitcode or 0
            with connection, contextlib.suppress(BrokenPipeError):  # who asked may have been killed
                connection.sendall(bytes([code if code >= 0 else 128 - code]))  # as a shell tells of a signal
        if listener in ready:
            connection, _ = listener.accept()
            process = _forked(connection)
            num_tasks += 1
            asking[process.sentinel] = process, connection


def _read_steps() -> None:
    """Import the code of each step, and read which files a result of it depends on: half of what a task whose result is
    there would do. What of them cannot be read, the run tells."""
    from bloomery.components.core import step
    from bloomery.pipelines import steps

    for name in steps.names():
        with contextlib.suppress(BloomeryError):
            step.code_digest(steps.find(name).run)


def _cpu_seconds(process: ForkProcess) -> float:
    """What a task has taken so far; 0 of one that has just ended."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _forked(connection: socket.socket) -> ForkProcess:
    """The process of the task that is asked for."""
    # A lock that another thread of Python held would never be opened in the fork.
    assert threading.active_count() == 1, threading.enumerate()
    size, streams, _, _ = socket.recv_fds(connection, 8, 2)
    asked = connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
    gc.freeze()  # a collection in the fork would write to, and so copy, every page of what is shared
    process = get_context("fork").Process(target=_run, args=(streams, *json.loads(asked)))
    process.start()
    for stream in streams:
        os.close(stream)
    return process


def _run(streams: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be `python3` with `arguments`. The process then ends without taking its modules apart, which, with each page
    copied, takes longer than importing them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # and not before: one that came meanwhile counts
    for place, stream in enumerate(streams, start=1):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    flag, module, *sys.argv[1:] = arguments
    if flag != "-m":
        raise ValueError(f"expected `-m module`, found {arguments[:2]}")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


if __name__ == "__main__":
    configure_logging()  # before it imports what is chatty: its last words are to be its own
    serve(socket.socket(fileno=int(sys.argv[1])))
