"""A step whose results are kept on an object store, run in processes as pods are: reused, raced, killed, refused; and
in a folder, by two at once."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from s3_server import Server

from bloomery.components.core import artifact, s3, store, trees, unfinished
from bloomery.components.core.errors import ServiceError
from bloomery.components.core.step import execute

STEP = """
import os
from pathlib import Path
from typing import Annotated
from bloomery.components.core import artifact, unfinished
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.config import Config

class CountConfig(Config):
    mode: str = ""

def run(config: CountConfig, *, numbers: Annotated[Path, Reads("n/1")], total: Annotated[Path, Writes("t/1")],
        rest: Annotated[Path, Writes("r/1")]) -> dict:
    assert config.mode != "never"
    kept = unfinished.place() / "checkpoint-1"
    goes_on = kept.is_dir()
    if config.mode == "keeps":
        kept.mkdir(exist_ok=True)
        (kept / "state").write_text("half")
        unfinished.keep([kept])
    for port, schema in ((total, "t/1"), (rest, "r/1")):
        (port / "in").mkdir(parents=True)
        (port / "in" / "t").write_text(str(os.getpid() if config.mode == "odd" else 3))
        artifact.seal(port, schema)
    return {"count/total": 3.0, "count/goes_on": float(goes_on)}
"""


@pytest.fixture
def pod(object_store, tmp_path, monkeypatch, caplog):
    """Runs the step as a pod does, with outputs of its own; its result."""
    caplog.set_level(logging.INFO, "bloomery")
    package = tmp_path / "code" / f"counting{os.urandom(4).hex()}" / "count"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "step.py").write_text(STEP)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("BLOOMERY_STORE", f"{object_store.uri}/")
    (tmp_path / "numbers").mkdir()
    artifact.seal(tmp_path / "numbers", "n/1")
    run = __import__(f"{package.parent.name}.count.step", fromlist=["run"]).run

    def go(name: str, mode: str = "") -> dict:
        outputs = {port: tmp_path / name / port for port in ("total", "rest")}
        return execute(run, "count", {"mode": mode}, {"numbers": tmp_path / "numbers"}, outputs)

    return go


def started(pod, *arguments: str):
    process = get_context("fork").Process(target=pod, args=arguments)
    process.start()
    return process


def digest(folder: Path) -> str:
    return artifact.read_manifest(folder).digest


def markers(server: Server) -> list[str]:
    return [name for name in server.objects() if name.endswith(trees.MARKER)]


def test_what_one_pod_finished_another_reuses(pod, object_store, tmp_path):
    first = pod("one")
    assert not first["cached"] and first["metrics"] == {"count/total": 3.0, "count/goes_on": 0.0}
    assert len(object_store.requests) == 4 + 7  # as README says, and below
    object_store.requests.clear()
    second = pod("two")
    assert second == {**first, "cached": True} and len(object_store.requests) == 4 + 2
    for port, schema in (("total", "t/1"), ("rest", "r/1")):
        taken = artifact.read_manifest(tmp_path / "two" / port, schema)
        assert taken == artifact.read_manifest(tmp_path / "one" / port)
        assert (tmp_path / "two" / port / "in" / "t").read_text() == "3"
    (marker,) = markers(object_store)
    assert marker.startswith("count/") and len(object_store.objects()) == 1 + 2 * 2
    assert not pod("three", "other")["cached"] and len(markers(object_store)) == 2


def test_killed_in_the_middle_of_an_upload_it_left_no_result(pod, object_store, tmp_path):
    object_store.fail("hung", "PUT .*/rest/in/t")
    process = started(pod, "killed")
    assert object_store.stuck.wait(60)
    process.kill()
    process.join()
    object_store.release()
    assert not markers(object_store)
    assert not pod("again")["cached"]
    assert len(markers(object_store)) == 1 and len(object_store.objects()) == 5  # what the killed one left is gone
    assert pod("third")["cached"] and digest(tmp_path / "third" / "rest") == digest(tmp_path / "again" / "rest")


def test_of_two_pods_with_the_same_work_the_first_whole_result_is_both_theirs(pod, object_store, tmp_path):
    object_store.fail("stuck", "PUT .*whole.json.* If-None-Match")
    late = started(pod, "late", "odd")
    assert object_store.stuck.wait(60)  # it has looked, and found no marker
    early = started(pod, "early", "odd")
    early.join()
    object_store.release()
    late.join()
    assert early.exitcode == late.exitcode == 0
    said = {(tmp_path / name / "in" / "t").read_text() for name in ("early/total", "early/rest", "late/total")}
    assert said == {str(early.pid)} and digest(tmp_path / "late" / "total") == digest(tmp_path / "early" / "total")
    assert len(markers(object_store)) == 1 and len(object_store.objects()) == 5


def test_of_two_that_a_store_lets_both_be_the_first_the_last_is_whole(pod, object_store, tmp_path):
    """As of a store that takes no notice of If-None-Match: one is held before its marker is written, while another
    deletes what it has put; its marker then replaces the other's."""
    object_store.knows_conditions = False
    object_store.fail("stuck", "PUT .*whole.json.* If-None-Match")
    held = started(pod, "held", "odd")
    assert object_store.stuck.wait(60)
    through = started(pod, "through", "odd")
    through.join()
    object_store.release()
    held.join()
    assert held.exitcode == through.exitcode == 0
    assert pod("third", "odd")["cached"]
    assert (tmp_path / "third" / "total" / "in" / "t").read_text() == str(held.pid)
    assert len(markers(object_store)) == 1 and len(object_store.objects()) == 5


def test_a_result_that_cannot_be_kept_is_a_result(pod, object_store, tmp_path, caplog):
    object_store.fail("ExpiredToken", "PUT .*", times=99)
    assert not pod("one")["cached"] and digest(tmp_path / "one" / "total")
    assert "the result is not kept for another run" in caplog.text and "renew the credentials" in caplog.text
    object_store.clear()
    assert not pod("two")["cached"] and pod("three")["cached"]


def test_what_work_goes_on_from_stays_until_its_result_is_kept(pod, object_store, caplog):
    object_store.fail("AccessDenied", r"PUT .*/count/\w+/whole.json")
    assert pod("one", "keeps")["metrics"]["count/goes_on"] == 0
    (marker,) = markers(object_store)
    assert marker.endswith(".checkpoints/checkpoint-1/whole.json")
    object_store.fail("AccessDenied", r"POST .*\?delete", times=2)
    assert pod("two", "keeps")["metrics"]["count/goes_on"] == 1
    assert caplog.text.count("not deleted, and no longer needed") == 2 and len(markers(object_store)) == 2
    assert pod("three", "keeps")["cached"]
    (marker,) = markers(object_store)
    assert ".checkpoints" not in marker


def test_a_store_that_is_away_is_told_before_the_work(pod, object_store, tmp_path):
    object_store.fail("503", times=99)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts"):
        pod("one", "never")
    assert not (tmp_path / "one").exists()


def test_a_damaged_result_is_made_again(pod, object_store, tmp_path):
    pod("one")
    (name,) = [name for name in object_store.objects() if name.endswith("rest/in/t")]
    s3.put_text(f"{object_store.uri}/{name}", "4")
    assert not pod("two")["cached"] and (tmp_path / "two" / "rest" / "in" / "t").read_text() == "3"
    assert pod("three")["cached"]


def test_what_was_kept_for_going_on_comes_back_elsewhere_and_goes_at_the_end(object_store, tmp_path, caplog):
    uri = f"{object_store.uri}/sft/key.checkpoints"

    def checkpoint(number: int, kind: str = "checkpoint") -> Path:
        folder = unfinished.place() / f"{kind}-{number}"
        folder.mkdir()
        (folder / "weights").write_text(str(number))
        return folder

    with pytest.raises(KeyboardInterrupt), unfinished.kept_at(uri):
        first = unfinished.place()
        unfinished.keep([checkpoint(300, "reference")])
        unfinished.keep([checkpoint(400, "reference")])
        unfinished.keep([checkpoint(9)])
        object_store.fail("stuck", "PUT .*checkpoint-10/whole.json")
        unfinished.keep([checkpoint(10)])  # goes on beside the work, when the one before is there
        assert object_store.stuck.wait(10) and unfinished.is_copying()
        assert trees.names(uri) == ["checkpoint-9", "reference-400"]  # until the newer one is whole
        object_store.release()
        unfinished.settle()
        assert trees.names(uri) == ["checkpoint-10", "reference-400"] and not unfinished.is_copying()
        object_store.fail("AccessDenied", "PUT .*checkpoint-11/whole.json")
        unfinished.keep([checkpoint(11)])  # torn: the older one stays
        raise KeyboardInterrupt
    assert "checkpoint-11 is kept on this machine alone" in caplog.text and not first.exists()
    assert trees.names(uri) == ["checkpoint-10", "reference-400"]
    with unfinished.kept_at(uri):
        assert unfinished.place() != first
        assert {folder.name for folder in unfinished.place().iterdir()} == {"checkpoint-10", "reference-400"}
        assert (unfinished.place() / "checkpoint-10" / "weights").read_text() == "10"
    assert trees.names(uri) == ["checkpoint-10", "reference-400"]


def test_a_checkpoint_that_the_store_refuses_is_told_with_the_result(pod, object_store):
    object_store.fail("AccessDenied", "PUT .*checkpoint-1/")
    assert "checkpoint-1 is kept on this machine alone" in pod("one", "keeps")["warnings"][0]


def test_small_things_and_folders_are_remembered(object_store, tmp_path, monkeypatch):
    for place in (object_store.uri, str(tmp_path / "store")):
        monkeypatch.setenv("BLOOMERY_STORE", place)
        assert store.remembered("preflight/a.json") is None
        store.remember("preflight/a.json", json.dumps("차"))
        assert json.loads(store.remembered("preflight/a.json")) == "차"
    monkeypatch.setenv("BLOOMERY_STORE", object_store.uri)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "ids").write_text("1")
    assert not store.fetch("tokens/a", tmp_path / "back")
    store.keep("tokens/a", tmp_path / "made")
    assert store.fetch("tokens/a", tmp_path / "back") and (tmp_path / "back" / "ids").read_text() == "1"
    monkeypatch.delenv("BLOOMERY_STORE")
    store.remember("a", "b")
    assert store.remembered("a") is None and store.shared("a") is None and not store.fetch("a", tmp_path / "c")


def test_of_two_that_want_the_same_one_works_and_the_other_takes_what_it_made(tmp_path):
    entry = store.entry(str(tmp_path / "store"), "count/key", {"total": "t/1"})
    worked = []

    def work(outputs):
        worked.append(outputs["total"])
        outputs["total"].mkdir()
        artifact.seal(outputs["total"], "t/1")
        return {"cached": False}

    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda name: entry.make({"total": tmp_path / name}, work), ("a", "b", "c")))
    assert len(worked) == 1 and sorted(result["cached"] for result in told) == [False, True, True]
    assert all(artifact.read_manifest(tmp_path / name, "t/1") for name in ("a", "b", "c"))
