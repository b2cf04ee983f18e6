import io
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
