import io
import signal
import subprocess
import sys

import pytest

from bloomery.pipelines import cli

ENDED = """
import os, signal, sys
from bloomery.pipelines import cli

class Told:
    def write(self, text):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.write(2, b"unwound\\n")
            sys.stdout = sys.__stdout__
    def flush(self): ...
    def isatty(self): return False

sys.argv, sys.stdout = ["bloomery", "show", "recipe", "seed"], Told()
cli.main()
"""


def test_what_a_disk_refuses_ends_a_command_with_one_message(monkeypatch, capsys):
    full = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "argv", ["bloomery", "show", "recipe", "seed"])
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 7
    assert "error: no space left on the disk while running bloomery show" in capsys.readouterr().err


def test_sigterm_unwinds_a_command():
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == "unwound\n"  # and not -SIGTERM
