import io
import os
import signal
import sys

import pytest

from bloomery.pipelines import cli


def test_what_a_disk_refuses_ends_a_command_with_one_message(monkeypatch, capsys):
    full = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "argv", ["bloomery", "show", "recipe", "seed"])
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 7
    assert "error: no space left on the disk while running bloomery show" in capsys.readouterr().err


def test_sigterm_unwinds_a_command(monkeypatch):
    class Told(io.StringIO):
        def write(self, text):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sys, "argv", ["bloomery", "show", "recipe", "seed"])
    monkeypatch.setattr(sys, "stdout", Told())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
