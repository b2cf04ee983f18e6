"""`run_step` on a real step of its own, in processes of its own where the process ends."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from bloomery.components.core import step
from bloomery.pipelines import overhead

STEP = """
import logging
import warnings
from pathlib import Path
from typing import Annotated
from bloomery.components.core import artifact, tracking
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.config import Config
from bloomery.components.core.errors import DataError

class CountConfig(Config):
    times: int = 1
    mode: str = "good"
    names: dict[str, int] = {}

def run(config: CountConfig, *, numbers: Annotated[Path, Reads("n/1")], total: Annotated[Path, Writes("t/1")]) -> dict:
    if config.mode == "bad":
        raise DataError("numbers: found none")
    total.mkdir(parents=True)
    (total / "t").write_text(str(config.times * int((numbers / "n").read_text())))
    (total / "names").write_text(" ".join(config.names))
    tracking.log({"loss": 2.5}, 1)
    for _ in range(2):
        logging.getLogger("bloomery.count").warning("3 of %d rows are lost", 9)
    logging.getLogger("transformers").warning("chatter")
    logging.getLogger("bitsandbytes.backends").warning("no kernels")
    for old in ("`is_gradient_checkpointing` is deprecated and will be removed", "something else is deprecated"):
        warnings.warn(old, FutureWarning)
    if config.mode == "unread":
        raise BrokenPipeError(32, "Broken pipe")
    if config.mode == "unfinished":
        return {}
    if config.mode == "killed":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    artifact.seal(total, "t/1")
    return {"count/total": 1.0, **({"count/share": float("nan")} if config.mode == "unknown" else {})}
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    package = tmp_path / "code" / "counting" / "count"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "step.py").write_text(STEP)
    words, numbers = tmp_path / "words", tmp_path / "numbers"
    numbers.mkdir()

    def run(config: dict, number: int | str = 3, **variables: str) -> tuple[int, str, list[dict]]:
        code = textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {str(tmp_path / "code")!r})
            from pathlib import Path
            from types import SimpleNamespace
            from bloomery.components.core import artifact
            from bloomery.components.core.step import leave_word, run_step
            leave_word.__defaults__ = (Path({str(words)!r}),)  # where a pod has it
            from counting.count.step import run
            folder = Path({str(numbers)!r})
            (folder / "n").write_text("{number}")
            artifact.seal(folder, "n/1")
            metrics = SimpleNamespace(path={str(tmp_path / "metrics")!r}, metadata={{}})
            outputs = {{"total": Path({str(tmp_path / "total")!r})}}
            run_step(run, "count_2", {config!r}, {{"numbers": folder}}, outputs, metrics)
        """)
        words.touch()
        journal = tmp_path / "journal.jsonl"
        journal.unlink(missing_ok=True)
        environment = {"BLOOMERY_STORE": str(tmp_path / "store"), "BLOOMERY_JOURNAL": str(journal), **variables}
        import os

        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
        )
        events = [json.loads(line) for line in journal.read_text().split("\n") if line] if journal.exists() else []
        return result.returncode, result.stderr, events

    return run


def test_no_step_sees_the_order_of_keys(call, tmp_path):
    for names in ({"b": 1, "a": 2}, {"a": 2, "b": 1}):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        assert call({"names": names})[0] == 0 and (tmp_path / "total" / "names").read_text() == "a b"


def test_what_is_no_number_is_left_out_of_the_metrics_and_told(call):
    code, log, events = call({"mode": "unknown"})
    assert code == 0 and events[-1]["metrics"] == {"count/total": 1.0}
    assert "count/share is nan, and is left out" in events[-1]["warnings"]


def test_a_finished_result_is_reused_until_config_or_input_changes(call, tmp_path):
    code, log, events = call({"times": 2.0}, LOG_FORMAT="json")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (told,) = [line["message"] for line in lines if line["logger"] == step.__name__]
    assert told.startswith("count_2: done; ") and float(overhead.TOOK.search(told)[1]) == events[-1]["seconds"]
    assert code == 0 and (tmp_path / "total" / "t").read_text() == "6"
    assert [event["event"] for event in events] == ["started", "progress", "warned", "finished"]
    assert events[-1]["history"] == [{"step": 1, "loss": 2.5}] and not events[-1]["cached"]
    assert events[-1]["warnings"] == ["3 of 9 rows are lost"]

    _, log, events = call({"times": 2}, LOG_FORMAT="json")
    (told,) = [line for line in map(json.loads, log.splitlines()) if line["logger"] == step.__name__]
    assert told["message"].startswith(f"count_2: {step.REUSED}")
    assert float(overhead.TOOK.search(told["message"])[1]) == events[-1]["seconds"]
    assert events[-1]["cached"] and events[-1]["metrics"] == {"count/total": 1.0}
    assert events[-1]["history"] == [{"step": 1, "loss": 2.5}]
    assert events[-1]["warnings"] == ["3 of 9 rows are lost"]
    assert not call({"times": 3})[2][-1]["cached"]
    assert not call({"times": 2}, number=4)[2][-1]["cached"]
    assert (tmp_path / "total" / "t").read_text() == "8"


def test_a_stored_result_that_lost_a_file_is_made_again(call, tmp_path):
    call({})
    next((tmp_path / "store").rglob("t")).unlink()
    assert not call({})[2][-1]["cached"]
    assert (tmp_path / "total" / "t").read_text() == "3"


def test_a_user_error_is_one_line_with_its_exit_code_and_leaves_nothing(call, tmp_path):
    code, stderr, events = call({"mode": "bad"})
    assert code == 3 and "Traceback" not in stderr and "numbers: found none" in stderr
    assert events[-1]["event"] == "failed" and events[-1]["error"] == "DataError"
    assert (tmp_path / "words").read_text() == "DataError: numbers: found none"
    assert not (tmp_path / "total").exists()
    assert not list((tmp_path / "store").rglob("*unfinished*"))


def test_what_no_store_keeps_takes_the_place_of_what_was_there_when_it_is_whole(call, tmp_path):
    (tmp_path / "total").mkdir()
    (tmp_path / "total" / "of an earlier run").touch()
    assert call({"mode": "unfinished"}, BLOOMERY_STORE="")[0] == 3
    assert [file.name for file in (tmp_path / "total").iterdir()] == ["of an earlier run"]
    assert call({}, BLOOMERY_STORE="")[0] == 0
    assert sorted(file.name for file in (tmp_path / "total").iterdir()) == ["manifest.json", "names", "t"]
    assert not list(tmp_path.glob("*unfinished*"))


def test_what_a_killed_step_left_goes_with_the_next(call, tmp_path):
    assert call({"mode": "killed"})[0] == -signal.SIGKILL and list((tmp_path / "store" / "count").iterdir())
    assert call({})[0] == 0
    (left,) = (tmp_path / "store" / "count").iterdir()
    assert not left.name.startswith(".")


def test_libraries_are_silenced_by_name(call):
    _, log, _ = call({})
    assert "chatter" in log and "something else is deprecated" in log
    assert "no kernels" not in log and "is_gradient_checkpointing" not in log


def test_who_no_longer_hears_a_step_is_no_fault_of_the_disk(call):
    code, log, events = call({"mode": "unread"})
    assert code == 1 and "Traceback" not in log and events[-1]["exit_code"] == 1
    assert "who started this process and read what it says has ended" in events[-1]["message"]


def test_a_trial_that_fails_hands_on_why_and_ends_well(call, tmp_path):
    for given, why in (({"mode": "bad"}, "numbers: found none"), ({}, "ValueError: invalid literal")):
        code, stderr, events = call(given, "three", BLOOMERY_TRIAL="1")
        assert code == 0 and events[-1]["event"] == "failed" and why in stderr
        assert json.loads((tmp_path / "metrics").read_text())["failed"].startswith(why)
        assert [file.name for file in (tmp_path / "total").iterdir()] == ["failed.txt"]
    # Outside of a trial it is the same error as ever, and what follows a failed stage hands its reason on.
    assert call({"mode": "bad"})[0] == 3
    (tmp_path / "numbers" / "failed.txt").write_text("sft: out of memory")
    assert call({}, BLOOMERY_TRIAL="1")[0] == 0
    assert (tmp_path / "total" / "failed.txt").read_text() == "sft: out of memory"
    assert not list((tmp_path / "store").rglob("result.json"))


def test_an_output_without_a_manifest_is_never_taken_for_whole(call, tmp_path):
    code, stderr, _ = call({"mode": "unfinished"})
    assert code == 3 and "did not finish" in stderr
    assert not (tmp_path / "total").exists()


def test_a_killed_step_leaves_nothing_that_looks_finished(call, tmp_path):
    code, _, _ = call({"mode": "killed"})
    assert code == -9 and not (tmp_path / "total").exists()
    assert not call({"mode": "good"})[2][-1]["cached"]


def test_what_was_kept_by_a_process_killed_right_after_it_had_finished_goes(call, tmp_path):
    call({})
    (result,) = (tmp_path / "store").glob("*/*/result.json")
    left = result.parent.with_name(f"{result.parent.name}.checkpoints")
    (left / "checkpoint-1").mkdir(parents=True)
    assert call({})[2][-1]["cached"] and not left.exists()


def test_a_config_error_names_the_stage(call):
    code, stderr, _ = call({"tims": 2})
    assert code == 2 and "count_2.tims: unknown key; did you mean 'times'?" in stderr


def test_a_pod_is_left_with_the_last_words_of_its_step(tmp_path):
    place = tmp_path / "termination-log"
    step.leave_word("nobody reads it here", place)
    assert not place.exists()
    place.touch()  # as Kubernetes mounts it
    step.leave_word("no chat survives max_length = 64", place)
    assert place.read_text() == "no chat survives max_length = 64"
    step.leave_word("가" * 3000, place)
    assert len(place.read_bytes()) <= step.MOST_LAST_WORDS
