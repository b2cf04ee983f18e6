"""A folder that is made beside another one."""

import os

from bloomery.pipelines import scratch


def test_what_killed_processes_left_goes_and_what_is_at_work_stays(tmp_path):
    left = tmp_path / f"{scratch.PREFIX}left"
    (left / "general").mkdir(parents=True)
    with scratch.beside(tmp_path / "demo") as first:
        (first / "file").touch()
        with scratch.beside(tmp_path / "demo") as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second])
        os.replace(first, tmp_path / "demo")
    assert list(tmp_path.rglob("*")) == [tmp_path / "demo", tmp_path / "demo" / "file"]
