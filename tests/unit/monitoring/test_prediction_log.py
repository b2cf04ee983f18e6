import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bloomery.components.core import s3
from bloomery.components.core.data.chats import as_json, as_text, chat, message
from bloomery.components.core.errors import ConfigError, DataError, ServiceError
from bloomery.components.core.records import Label, Prediction
from bloomery.components.core.scoring.tasks import Template, ask
from bloomery.monitoring import prediction_log
from bloomery.monitoring.prediction_log import PredictionLog, Reading

START = datetime(2025, 1, 6, 9, tzinfo=UTC)


def row(index: int, **changes) -> Prediction:
    values = {
        "id": f"r{index:05d}",
        "time": (START + timedelta(hours=index)).isoformat(),
        "model_name": "sql",
        "model_version": "1",
        "prompt": f"question {index}",
        "messages": as_json(chat(changes.get("prompt", f"question {index}"))),
        "response": "SELECT 1",
        "latency_seconds": 0.1,
        "prompt_tokens": 2,
        "response_tokens": 2,
        "mean_log_probability": -0.5,
        "mean_entropy": 0.25,
        "feedback": None,
        "label": None,
    }
    return Prediction(**{**values, **changes})


def write(uri, rows) -> PredictionLog:
    log = PredictionLog(str(uri))
    log.append(rows)
    log.close()
    return log


def read(uri, *bounds) -> list[Prediction]:
    return [item for _, item in Reading(str(uri), *bounds)]


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).parent.as_posix() for file in folder.rglob("*.parquet"))


@pytest.fixture(params=["disk", "store"])
def uri(request, tmp_path):
    """A folder, and a prefix of an object store."""
    if request.param == "disk":
        return str(tmp_path / "log")
    return f"{request.getfixturevalue('object_store').uri}/log"


def tear(uri: str, day: str) -> None:
    """Let the file of a day be torn."""
    if "://" not in uri:
        (file,) = (Path(uri) / day).iterdir()
        file.write_bytes(b"torn")
    else:
        (name,) = s3.names(f"{uri}/{day}")
        s3.put_bytes(f"{uri}/{day}/{name}", b"torn")


def test_rows_come_back_as_they_were(uri):
    rows = [row(index) for index in range(40)]
    assert write(uri, rows).num_written == 40
    assert sorted(read(uri), key=lambda item: item.id) == rows


def test_a_row_lies_under_the_day_of_its_own_time_in_utc(tmp_path):
    write(tmp_path, [row(0, time="2025-01-07T08:59:00+09:00"), row(1, time="2025-01-07T09:00:00+09:00")])
    assert files(tmp_path) == ["date=2025-01-06", "date=2025-01-07"]
    assert [item.time for item in read(tmp_path)] == ["2025-01-06T23:59:00+00:00", "2025-01-07T00:00:00+00:00"]


def test_only_the_days_asked_for_are_opened(uri):
    write(uri, [row(index) for index in range(72)])  # four days: 15, 24, 24 and 9 rows
    tear(uri, "date=2025-01-06")
    tear(uri, "date=2025-01-09")
    reading = Reading(uri, START + timedelta(hours=20), START + timedelta(hours=30))
    assert sorted(item.id for _, item in reading) == [f"r{index:05d}" for index in range(20, 30)]
    assert reading.quarantined == {}
    whole = Reading(uri)
    assert len(list(whole)) == 48 and len(whole.quarantined) == 2


def test_days_without_rows_are_empty_and_not_the_whole_log(uri):
    write(uri, [row(0)])
    assert read(uri, START + timedelta(days=5)) == []


def test_personal_data_never_reaches_the_file(tmp_path):
    log = PredictionLog(str(tmp_path))
    log.append([row(0, prompt="kim@shop.kr로 보내줘", response="주민번호 900101-1234568 입니다")])
    log.label("r00000", label="call 010-1234-5678", feedback=1.0)
    log.close()
    found = read(tmp_path)[0]
    assert (found.prompt, found.response, found.label) == ("[EMAIL]로 보내줘", "주민번호 [RRN] 입니다", "call [PHONE]")
    assert log.masked == {"email": 1, "rrn": 1, "phone": 1}
    assert not any(b"kim@shop.kr" in file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_a_conversation_is_kept_masked_and_can_be_asked_again(tmp_path):
    call = json.dumps([{"id": "c1", "name": "mail", "arguments": {"to": "kim@shop.kr", "card": 4111111111111111}}])
    turns = [
        *chat("write to kim@shop.kr"),
        message("assistant", "", tool_calls=call),
        message("tool", '{"sent": true, "card": 4111111111111111}', tool_call_id="c1"),
    ]
    log = PredictionLog(str(tmp_path))
    log.append([row(0, prompt=as_text(turns), messages=as_json(turns))])
    log.close()
    (found,) = read(tmp_path)
    asked = ask(Template(messages="messages", answer="{label}"), {"messages": found.messages, "label": "done"})
    assert (asked.problem, asked.reference) == ("", "done")
    assert [turn["content"] for turn in asked.messages] == ["write to [EMAIL]", "", '{"sent": true, "card": "[CARD]"}']
    (read_call,) = json.loads(asked.messages[1]["tool_calls"])
    assert read_call["arguments"] == {"to": "[EMAIL]", "card": "[CARD]"} and read_call["id"] == "c1"
    assert not any(b"kim@shop.kr" in file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_a_log_of_the_first_version_is_read_as_lone_questions(tmp_path):
    values = row(0).model_dump(exclude={"messages"})
    table = Prediction.table([{**values, "messages": ""}]).drop_columns(["messages"])
    (tmp_path / "date=2025-01-06").mkdir()
    old = table.replace_schema_metadata({"schema": "prediction/1"})
    pq.write_table(old, tmp_path / "date=2025-01-06" / "old.parquet")
    (found,) = read(tmp_path)
    assert json.loads(found.messages) == [{"role": "user", "content": "question 0"}]


def test_the_newest_late_label_wins_and_an_unknown_one_is_counted(uri):
    log = PredictionLog(uri)
    log.append([row(0), row(1, label="mine"), row(2)])
    log.label("r00000", label="SELECT 2", feedback=0.0)
    log.flush()
    log.label("r00000", label="SELECT 3")
    log.label("r00001", feedback=1.0)
    log.label("nobody", label="x")
    log.close()
    reading = Reading(uri)
    found = {item.id: (item.label, item.feedback) for _, item in reading}
    assert found == {"r00000": ("SELECT 3", 0.0), "r00001": ("mine", 1.0), "r00002": (None, None)}
    assert reading.num_unknown_labels == 1


def test_torn_corrupt_and_foreign_files_are_named_and_the_rest_is_read(tmp_path):
    for index in range(4):
        write(tmp_path, [row(index, prompt="how many orders? " * 50)])
    day = tmp_path / "date=2025-01-06"
    torn, flipped, _, _ = sorted(day.iterdir())
    torn.write_bytes(torn.read_bytes()[:-20])
    content = bytearray(flipped.read_bytes())
    content[60] ^= 1  # in the first column's page, which its checksum guards
    flipped.write_bytes(content)
    pq.write_table(Label.table([{"id": "a", "time": "t", "feedback": None, "label": None}]), day / "other.parquet")
    (day / "empty.parquet").touch()
    reading = Reading(str(tmp_path))
    assert len(list(reading)) == 2
    assert {Path(name).name for name in reading.quarantined} == {
        torn.name,
        flipped.name,
        "other.parquet",
        "empty.parquet",
    }
    assert reading.quarantined[str(day / "other.parquet")] == "holds label/1, expected prediction/2"
    assert torn.exists()


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    write(tmp_path, [row(0)])
    table = Prediction.table([row(1).model_dump(), {**row(2).model_dump(), "time": "soon"}])
    pq.write_table(table, tmp_path / "date=2025-01-06" / "theirs.parquet")
    (tmp_path / "more.jsonl").write_text(row(3).model_dump_json() + '\n{"id": 1}\n{\n')
    reading = Reading(str(tmp_path))
    assert sorted(item.id for _, item in reading) == ["r00000", "r00001", "r00003"]
    assert reading.left_out == {"wrong_time": 1, "wrong_fields": 1, "broken_json": 1}


def test_rows_from_before_the_scores_are_read(tmp_path):
    old = {key: value for key, value in row(0).model_dump().items() if not key.startswith("mean_")}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    table = Prediction.table([row(1).model_dump()]).drop_columns(["mean_log_probability", "mean_entropy"])
    pq.write_table(table, tmp_path / "old.parquet")
    assert {item.mean_entropy for item in read(tmp_path)} == {None}


WRITER = """
import sys
import time
from bloomery.components.core.records import Prediction
from bloomery.monitoring.prediction_log import PredictionLog
uri, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = PredictionLog(uri, flush_rows=20, flush_seconds=0.01)
print("ready", flush=True)
index = 0
while index < count or count < 0:
    log.append([Prediction(id=f"{name}-{index}", time=f"2025-01-{6 + index % 3:02d}T00:00:00", model_name="m",
        model_version="1", prompt="p", response="r", latency_seconds=0.1, prompt_tokens=1, response_tokens=1,
        feedback=None, label=None)])
    index += 1
    time.sleep(0.001)
log.close()
"""


def writer(uri: str, name: str, count: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, uri, name, str(count)], stdout=subprocess.PIPE)


def test_processes_write_at_the_same_time_and_every_row_is_there_once(tmp_path):
    writers = [writer(str(tmp_path), name, 300) for name in "abc"]
    assert [process.wait() for process in writers] == [0] * 3
    found = [item.id for item in read(tmp_path)]
    assert sorted(found) == sorted(f"{name}-{index}" for name in "abc" for index in range(300))


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    process = writer(str(tmp_path), "a", -1)
    process.stdout.readline()
    while len(list(tmp_path.rglob("*.parquet"))) < 6:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reading = Reading(str(tmp_path))
    found = [item.id for _, item in reading]
    assert reading.quarantined == {} and len(found) == len(set(found)) > 0


def test_rows_wait_while_the_disk_refuses(tmp_path):
    blocked = tmp_path / "log" / "date=2025-01-06"
    log = PredictionLog(str(tmp_path / "log"))
    blocked.parent.mkdir()
    blocked.write_text("a file where the folder should be")
    log.append([row(0)])
    with pytest.raises(ServiceError):
        log.flush()
    blocked.unlink()
    log.close()
    assert log.num_written == 1 and [item.id for item in read(tmp_path / "log")] == ["r00000"]


@pytest.fixture
def log(object_store):
    made = PredictionLog(f"{object_store.uri}/log")
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["503", "reset", "lost"])
def test_a_store_that_fails_for_a_moment_has_each_row_once(log, object_store, fault):
    """`lost`: it has taken the file, and its answer does not come."""
    log.append([row(0)])
    object_store.fail(fault, "PUT .*parquet", times=2)
    log.flush()
    assert len([asked for asked in object_store.requests if asked.startswith("PUT")]) == 3
    assert [item.id for item in read(log.uri)] == ["r00000"] and log.num_written == 1


def test_rows_wait_while_the_store_refuses(log, object_store, caplog):
    log.append([row(0)])
    object_store.fail("AccessDenied", "PUT")
    with pytest.raises(ConfigError, match="AccessDenied.*s3:PutObject"):
        log.flush()
    object_store.fail("500", "PUT", times=5)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts"):
        log.flush()
    log.append([row(1)])
    assert log.num_written == 0 and not object_store.objects("store/log")
    log.flush()
    assert sorted(item.id for item in read(log.uri)) == ["r00000", "r00001"] and log.num_lost == 0


@pytest.mark.parametrize("fault", ["500", "reset", "torn"])
def test_a_failing_network_is_no_torn_file(log, object_store, fault):
    log.append([row(index) for index in range(9)])
    log.flush()
    object_store.fail(fault, "GET .*parquet", times=2)
    reading = Reading(log.uri)
    assert len(list(reading)) == 9 and reading.quarantined == {}
    object_store.fail("500", "GET .*parquet", times=5)
    with pytest.raises(ServiceError, match="did not answer"):
        read(log.uri)


def test_whether_there_is_a_log_on_a_store(log, object_store):
    assert not prediction_log.exists(log.uri)
    log.append([row(0)])
    log.flush()
    object_store.requests.clear()
    assert prediction_log.exists(log.uri) and len(object_store.requests) == 1
    with pytest.raises(ConfigError, match="expected a folder or s3://bucket/prefix"):
        PredictionLog("gs://bucket/log")


def test_a_wrong_place_or_time_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(DataError, match="is a file"):
        PredictionLog(str(tmp_path / "log.jsonl"))
    log = PredictionLog(str(tmp_path / "log"))
    with pytest.raises(DataError, match="expected ISO 8601"):
        log.append([row(0, time="soon")])
    log.close()
    with pytest.raises(DataError, match="no file there"):
        read(tmp_path / "nothing")
