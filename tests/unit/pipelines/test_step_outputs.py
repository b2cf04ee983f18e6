"""Folders that `bloomery step` would delete, or write over while it reads them."""

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.records import Reject
from bloomery.pipelines import steps

PORTS = ("tasks", "chats", "prompts", "rejects")


def refused(folder, **others):
    """What is said of the step synthetic_data, each port of which has a folder of its own in `folder` but `others`."""
    folders = {port: folder / port for port in PORTS} | others
    with pytest.raises(ConfigError) as error:
        steps.run_one("synthetic_data", None, [], [f"--{port}={path}" for port, path in folders.items()])
    return str(error.value)


@pytest.mark.parametrize("place", ["chats", "chats/inside", ".", "tasks", "tasks/inside", "other/../chats"])
def test_an_output_has_a_folder_of_its_own(tmp_path, place):
    assert "name one of its own" in refused(tmp_path, prompts=tmp_path / place)
    assert not list(tmp_path.iterdir())


def test_what_no_step_wrote_is_not_deleted(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    told = refused(tmp_path, prompts=tmp_path / "mine")
    assert told == f"--prompts {tmp_path}/mine: holds something that no step wrote; name an empty folder, or a new one"
    assert "no step wrote" in refused(tmp_path, prompts=tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_artifact_and_an_empty_folder_may_be_replaced(tmp_path):
    (tmp_path / "chats").mkdir()
    artifact.write_rows(tmp_path / "rejects", "reject/1", Reject.table([]))
    with pytest.raises(DataError, match="tasks"):  # the first that is looked at after the outputs, and not there
        steps.run_one("synthetic_data", None, [], [f"--{port}={tmp_path / port}" for port in PORTS])
