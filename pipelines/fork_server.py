"""The tasks of a run on this machine as forks of one process that has imported what they need.

Importing torch, transformers and MLflow takes 7 CPU seconds, and a run has some twenty tasks. kfp.local starts a task
by the `python3` of its command, for which it takes `sys.executable`; within `running` that is a script that asks the
server to fork and to go on as the task: with its arguments, environment, working directory and streams, in a process
of its own, which ends as it would have ended. Nothing of a task comes back into the server.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PRELOADED = (
    "kfp.dsl.executor_main",
    "mlflow",
    "bloomery.components.core.records",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation",
    "trl",
)
"""In the order in which the tasks of a run come to need them. Imported one by one between two tasks, so that nobody
waits for what he does not need."""

ASK = """#!{python} -IS
import json, os, socket, sys

asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(asked).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(asked)
    ended = server.recv(1)
sys.exit(ended[0] if ended else 1)
"""


class Task(NamedTuple):
    """What a forked process is to go on as."""

    arguments: list[str]
    """As after `python3`: `-m module …`."""
    folder: str
    environment: dict[str, str]

    def run(self) -> None:
        """Be the task."""
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        flag, module, *sys.argv[1:] = self.arguments
        if flag != "-m":
            raise ValueError(f"expected `-m module`, found {self.arguments[:2]}")
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Let `sys.executable` be a `python3 -m …` that forks a server, which ends with the context or with this process.

    On Linux alone: elsewhere system libraries do not stand a fork after they were loaded, and nothing changes.
    """
    if sys.platform != "linux":
        yield
        return
    python = sys.executable
    with tempfile.TemporaryDirectory(prefix="bloomery-") as folder, socket.socket(socket.AF_UNIX) as listener:
        address, program = f"{folder}/server", Path(folder) / "python3"
        listener.bind(address)
        listener.listen()
        program.write_text(ASK.format(python=python, address=address))
        program.chmod(0o700)
        command = [python, "-m", __name__, str(listener.fileno())]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        sys.executable = str(program)
        try:
            yield
        finally:
            sys.executable = python
            server.communicate()  # its stdin is closed, by which it ends


def serve(listener: socket.socket) -> Task | None:
    """Fork for everyone who asks, until stdin is closed; returns the task in a forked process, None in the server."""
    waiting = list(PRELOADED)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0 if waiting else None)
        if sys.stdin in ready:
            return None
        if listener in ready:
            connection, _ = listener.accept()
            with connection:
                if (task := _forked(connection)) is not None:
                    return task
        elif waiting:
            importlib.import_module(waiting.pop(0))
            if "torch" in sys.modules and sys.modules["torch"].version.cuda:
                waiting.clear()  # a driver that an import has woken cannot be used by a fork


def _forked(connection: socket.socket) -> Task | None:
    """The task that was asked for, in its own process; None in the server."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # those who told how earlier tasks ended
    # A lock that another thread of Python held would never be opened in the fork.
    assert threading.active_count() == 1, threading.enumerate()
    if os.fork():
        for stream in streams:
            os.close(stream)
        return None
    asked = connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
    if task := os.fork():
        ended = os.waitstatus_to_exitcode(os.waitpid(task, 0)[1])
        connection.sendall(bytes([ended if ended >= 0 else 128 - ended]))  # as a shell tells of a signal
        os._exit(0)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    return Task(*json.loads(asked))


if __name__ == "__main__":
    found = serve(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        found.run()
