"""A folder that is made beside another one."""

import errno
import os
import signal
import threading
from multiprocessing import get_context

from bloomery.components.core import scratch


def is_killed(out):
    """Whether a process was killed while it made `out`."""

    def make():
        with scratch.beside(out) as made:
            (made / "file").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=make)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_what_killed_processes_left_goes_and_what_is_at_work_stays(tmp_path):
    foreign = tmp_path / f"{scratch.PREFIX}of-another-program"
    foreign.mkdir()
    assert is_killed(tmp_path / "other") and is_killed(tmp_path / "demo")
    assert len(list(tmp_path.iterdir())) == 2  # the second has deleted what the first had left
    with scratch.beside(tmp_path / "demo") as first:
        assert not list(first.iterdir()) and first.name == "demo"
        (first / "file").touch()
        with scratch.beside(tmp_path / "more") as second:
            assert set(tmp_path.iterdir()) == {first.parent, second.parent, foreign}
        os.replace(first, tmp_path / "demo")
    assert set(tmp_path.rglob("*")) == {tmp_path / "demo", tmp_path / "demo" / "file", foreign}


def test_who_makes_the_same_waits_and_finds_it(tmp_path, caplog):
    found, out = [], tmp_path / "demo"

    def make():
        with scratch.beside(out) as made:
            found.append(out.exists())
            if not out.exists():
                os.replace(made, out)

    others = [threading.Thread(target=make) for _ in range(3)]
    with scratch.beside(out):
        for other in others:
            other.start()
        while len(caplog.messages) < len(others):
            pass
        assert not found
    for other in others:
        other.join()
    assert sorted(found) == [False, True, True] and list(tmp_path.iterdir()) == [out]
    assert f"another process makes {tmp_path / 'demo'}: waiting until it has ended" in caplog.messages


def test_who_waits_for_one_that_is_killed_finds_nothing_of_it(tmp_path, caplog):
    out, found = tmp_path / "demo", []

    def hold():
        with scratch.beside(out) as made:
            (made / "file").touch()
            (tmp_path / "holds").touch()
            signal.pause()

    def wait():
        with scratch.beside(out) as made:
            found.append(list(made.iterdir()))

    holder, waiting = get_context("fork").Process(target=hold), threading.Thread(target=wait)
    holder.start()
    while not (tmp_path / "holds").exists():
        pass
    os.kill(holder.pid, signal.SIGSTOP)
    waiting.start()
    while not caplog.messages:
        pass
    holder.kill()
    waiting.join()
    assert found == [[]] and list(tmp_path.iterdir()) == [tmp_path / "holds"]


def test_without_locks_each_makes_its_own(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    with scratch.beside(tmp_path / "demo") as first, scratch.beside(tmp_path / "demo") as second:
        (first / "file").touch()
        assert not list(second.iterdir())
        os.replace(first, tmp_path / "demo")
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["file"]
