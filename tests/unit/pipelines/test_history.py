"""What is told of runs, finished or not."""

import json
import os

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.pipelines import history, workdirs

PROGRESS = {"event": "progress", "stage": "sft", "time": 130.0, "step": 10, "metrics": {"loss": 0.5, "num_steps": 40.0}}
BEGUN = [
    {"event": "started", "stage": "preflight", "time": 100.0},
    {"event": "finished", "stage": "preflight", "time": 110.0, "outputs": {}},
    {"event": "started", "stage": "sft", "time": 120.0},
    PROGRESS,
]


def ended(status):
    return {"event": "ended", "stage": "mine", "time": 140.0, "status": status}


@pytest.fixture
def begin(tmp_path):
    def write(run, *events):
        (tmp_path / "runs" / run).mkdir(parents=True)
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / "runs" / run / "journal.jsonl").write_text(lines + '{"cut o')

    return write


def test_a_run_without_a_summary_tells_where_it_is_and_whether_it_goes_on(begin, tmp_path, monkeypatch):
    begin("1-killed", *BEGUN)
    os.utime(tmp_path / "runs" / "1-killed", (100, 100))
    begin("2-stopped", *BEGUN, ended("interrupted"))
    begin("3-trial", *BEGUN, ended("finished"))
    at = "sft loss 0.500, 10/40, 30 s left"
    with workdirs.held(tmp_path):
        begin("4-at-work", *BEGUN)
        monkeypatch.setattr(history.time, "time", lambda: 160.0)
        found = [(entry["run"], entry["status"], entry["seconds"], entry["at"]) for entry in history.runs(tmp_path)]
        assert found == [
            ("4-at-work", "running", 60.0, at),
            ("3-trial", "finished", 40.0, ""),
            ("2-stopped", "interrupted", 40.0, at),
            ("1-killed", "ended without a word", 30.0, at),
        ]
        told = history.describe(history.shown(tmp_path, "last"))
        assert told.split() == f"4-at-work running 60 s {at}".split()
        with pytest.raises(ServiceError, match="another run holds this workdir"), workdirs.held(tmp_path):
            pass
    assert [entry["status"] for entry in history.runs(tmp_path)][0] == "ended without a word"
    assert "ended without a word" in history.describe(history.shown(tmp_path, "1-killed"))
    with pytest.raises(ConfigError, match="no finished runs there"):
        history.summary_of(tmp_path, "last")  # which is compared with others


def test_a_summary_tells_what_a_journal_would(begin, tmp_path):
    begin("5-whole", *BEGUN)
    summary = {"status": "promoted", "reason": "all passed", "seconds": 9.0, "model": {"name": "m", "version": "1"}}
    summary |= {"stages": {"sft": {"sft/loss": 0.5}}, "cached_steps": ["sft"], "report": "r.html"}
    summary["run"] = str(tmp_path / "runs" / "5-whole")
    (tmp_path / "runs" / "5-whole" / "summary.json").write_text(json.dumps(summary))
    (entry,) = history.runs(tmp_path)
    assert history.line(entry).split() == "5-whole promoted 9 s m v1".split()
    assert history.shown(tmp_path, "last") == history.summary_of(tmp_path, "5-whole") == summary
    assert history.describe(summary).splitlines()[0] == "promoted: all passed"
    with pytest.raises(ConfigError, match="no finished run 6; known: 5-whole"):
        history.shown(tmp_path, "6")


def test_the_adapters_of_a_run_are_told_with_their_folders(make_run, tmp_path):
    made = make_run(tmp_path / "run")
    for stage, adapter in (("sft", {"kind": "lora"}), ("start", None)):  # the start may bring that of an earlier run
        folder = made.path(stage, "model")
        (folder / "adapter").mkdir(parents=True)
        with artifact.lineage(stage, {"adapter": adapter}, {}):
            artifact.seal(folder, "model/1")
        made.finish(stage, {"model": folder}, {f"{stage}/loss": 0.5})
    known = {"status": "promoted", "reason": "all 3 legs passed", "seconds": 1.0, "report": "r.html"}
    known |= {"stages": {"sft": {"sft/loss": 0.5}}, "cached_steps": [], "run": str(made.folder)}
    told = history.describe(known)
    assert told.split("\n")[2:5] == [f"adapter of sft: {made.path('sft', 'model') / 'adapter'}", "", "sft"]
