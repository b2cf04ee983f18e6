"""A workdir that is held, and the temporary files of who holds it."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from bloomery.components.core.errors import ServiceError
from bloomery.pipelines import workdirs

KILLED = """
import os, signal, subprocess, sys, tempfile
from pathlib import Path
from bloomery.pipelines import workdirs
with workdirs.held(Path(sys.argv[1])):
    tempfile.mkdtemp()
    subprocess.run(["mktemp", "-d"])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_go_with_who_holds_the_workdir_or_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "w"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and str(tmp_path / "tmp") in killed.stdout
    (left,) = (tmp_path / "tmp").iterdir()
    assert len(list(left.glob("*/*"))) == 2
    with workdirs.held(tmp_path / "another"):
        assert not left.exists()
        made = tempfile.mkdtemp()
        assert made.startswith(f"{tmp_path / 'tmp'}/") and made.startswith(os.environ["TMPDIR"])
    assert not list((tmp_path / "tmp").iterdir())
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "tmp")


def test_without_a_place_for_temporary_files_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    expected = "no folder for temporary files could be made, .* let TMPDIR name a folder with room"
    with pytest.raises(ServiceError, match=expected), workdirs.held(tmp_path):
        pass


def test_a_workdir_goes_again_in_which_nothing_was_begun(tmp_path):
    made, given = tmp_path / "made", tmp_path / "given"
    given.mkdir()
    for workdir in (made, given):
        with pytest.raises(ZeroDivisionError), workdirs.held(workdir):
            raise ZeroDivisionError
    assert not made.exists() and given.exists()
    with workdirs.held(made):
        (made / "runs").mkdir()
    assert sorted(entry.name for entry in made.iterdir()) == [".lock", "runs"]
