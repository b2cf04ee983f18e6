import errno
import os

import pytest

from bloomery.components.core import artifact, errors, scratch
from bloomery.components.core.errors import DataError, ServiceError


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.ENOSPC, ServiceError, "no space left on the disk while making it (/a/b): free some space"),
        (errno.EROFS, ServiceError, "mounted read-only, found while making it (/a/b)"),
        (errno.EACCES, DataError, "permission denied while making it (/a/b): check the owner and mode"),
    ],
)
def test_what_a_disk_refuses_is_told_with_the_place(number, kind, words):
    told = errors.from_os_error(OSError(number, os.strerror(number), "/a/b"), "making it")
    assert type(told) is kind and words in str(told)


def test_a_place_is_told_once():
    told = errors.from_os_error(PermissionError(errno.EACCES, "", "/a/b"), "writing /a/b")
    assert str(told).count("/a/b") == 1


def test_what_is_being_made_is_told_by_the_path_that_it_will_have(tmp_path):
    with scratch.beside(tmp_path / "out") as made:
        assert str(DataError(f"{made / 'port'}: full")) == f"{tmp_path}/out/port: full"
        assert str(DataError(f"{made.parent}: full")) == f"{tmp_path}/out: full"
        assert str(DataError(f"{made.parent / scratch.LOCK}: full")) == f"{tmp_path}/out/.lock: full"


def test_the_disk_behind_a_database_is_told():
    full = errors.from_sqlite("(sqlite3.OperationalError) database or disk is full", "/w/mlflow.db", "writing it")
    assert isinstance(full, ServiceError) and "no space left on the disk while writing it (/w/mlflow.db)" in str(full)
    assert isinstance(errors.from_sqlite("attempt to write a readonly database", "/w/m.db", "writing it"), DataError)
    assert errors.from_sqlite("no such table: runs", "/w/mlflow.db", "writing it") is None


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        artifact.write_atomically(tmp_path / "report.html", "\ud800")
    assert not list(tmp_path.iterdir())
