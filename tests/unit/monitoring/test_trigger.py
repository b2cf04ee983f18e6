import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from bloomery.components.core.errors import DataError, ServiceError
from bloomery.monitoring.trigger import record_file, retraining_command, start, started_before

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def appending(path) -> list[str]:
    return [sys.executable, "-c", f"open({str(path)!r}, 'a').write('x'); print('done')"]


def test_a_key_starts_one_command(tmp_path):
    marks = tmp_path / "marks"
    arguments = {"log": tmp_path / "out.log", "wait": True, "now": NOW}
    first = start(tmp_path / "triggers", "w1", appending(marks), **arguments)
    second = start(tmp_path / "triggers", "w1", appending(marks), **arguments)
    assert marks.read_text() == "x"
    assert (first.is_new, second.is_new) == (True, False)
    assert second.trigger == first.trigger and first.trigger.status == "submitted"
    assert (tmp_path / "out.log").read_text() == "done\n"
    start(tmp_path / "triggers", "w2", appending(marks), **arguments)
    assert marks.read_text() == "xx"
    assert [trigger.key for trigger in started_before(tmp_path / "triggers")] == ["w1", "w2"]


def test_many_at_once_start_one(tmp_path):
    marks = tmp_path / "marks"

    def attempt(_):
        return start(tmp_path / "triggers", "w1", appending(marks), log=tmp_path / "log", wait=True, now=NOW).is_new

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, range(4)))
    assert outcomes.count(True) == 1
    assert marks.read_text() == "x"


def test_a_local_run_goes_on_in_the_background(tmp_path):
    marks = tmp_path / "marks"
    slow = [sys.executable, "-c", f"import time; time.sleep(0.3); open({str(marks)!r}, 'a').write('x')"]
    started = start(tmp_path / "triggers", "w1", slow, log=tmp_path / "log", wait=False, now=NOW)
    assert started.trigger.status == "started" and started.trigger.pid > 0
    assert not marks.exists()
    deadline = time.monotonic() + 10
    while not marks.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marks.read_text() == "x"


@pytest.mark.parametrize("command", [["no-such-program"], [sys.executable, "-c", "raise SystemExit(7)"]])
def test_a_failed_submission_frees_the_key(tmp_path, command):
    with pytest.raises(ServiceError):
        start(tmp_path / "triggers", "w1", command, log=tmp_path / "log", wait=True, now=NOW)
    again = start(tmp_path / "triggers", "w1", appending(tmp_path / "m"), log=tmp_path / "log", wait=True, now=NOW)
    assert again.is_new


def test_a_record_without_a_start_starts_nothing(tmp_path):
    marks = tmp_path / "marks"
    arguments = {"log": tmp_path / "log", "wait": True, "now": NOW}
    start(tmp_path, "w1", appending(marks), **arguments)
    record = record_file(tmp_path, "w1")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "starting"}))
    assert start(tmp_path, "w1", appending(marks), **arguments).trigger.status == "starting"
    assert marks.read_text() == "x"


def test_a_broken_record_is_named(tmp_path):
    record_file(tmp_path, "w1").write_text("{")
    with pytest.raises(DataError, match="delete it to allow a new start"):
        started_before(tmp_path)


def test_commands_of_both_runners(tmp_path):
    local = retraining_command("quickstart", tmp_path, ["dpo.beta=0.2"], "local")
    assert local[1:] == ["run", "quickstart", "--workdir", str(tmp_path), "--set", "dpo.beta=0.2"]
    assert retraining_command("quickstart", tmp_path, [], "cluster")[1:] == ["submit", "quickstart"]
