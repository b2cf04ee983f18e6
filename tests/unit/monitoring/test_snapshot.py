import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bloomery.components.core.artifact import write_rows
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Prediction
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.prediction_log import PredictionLog
from bloomery.monitoring.snapshot import take

START = datetime(2025, 1, 6, 9, tzinfo=UTC)
NOW = START + timedelta(days=365)


def row(index: int, version: str = "1", **changes) -> dict:
    time = (START + timedelta(hours=index)).isoformat()
    return {
        "id": f"r{index:03d}",
        "time": time,
        "model_name": "sql",
        "model_version": version,
        "prompt": f"question {index}",
        "messages": "",
        "response": "SELECT 1",
        "latency_seconds": 0.1,
        "prompt_tokens": 2,
        "response_tokens": 2,
        "feedback": None,
        "label": None,
        **changes,
    }


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def ids(rows):
    return [r.id for r in rows]


def test_windows_are_counted_from_the_first_row_and_do_not_overlap(tmp_path):
    config = MonitoringConfig(reference_rows=3, window_rows=2)
    taken = take(write(tmp_path / "log.jsonl", [row(i) for i in (4, 1, 0, 2, 3, 5, 6, 7)]), config, NOW)
    assert ids(taken.reference) == ["r000", "r001", "r002"]
    assert [ids(w.rows) for w in taken.windows] == [["r003", "r004"], ["r005", "r006"]]
    assert taken.left_out == {"incomplete_window": 1}
    assert taken.champion == "sql:1"
    assert taken.windows[0].id.startswith("sql-1-") and taken.windows[0].id.endswith("-w0001")


def test_a_window_is_the_same_after_more_rows_came(tmp_path):
    config = MonitoringConfig(reference_rows=3, window_rows=2)
    before = take(write(tmp_path / "a.jsonl", [row(i) for i in range(5)]), config, NOW)
    after = take(write(tmp_path / "b.jsonl", [row(i) for i in range(7)]), config, NOW)
    assert after.windows[0] == before.windows[0]


def test_windows_by_days_are_judged_when_they_are_over(tmp_path):
    log = write(tmp_path / "log.jsonl", [row(i) for i in range(24 * 4)])  # one row an hour, four days
    config = MonitoringConfig(reference_days=2, window_days=1)
    taken = take(log, config, START + timedelta(days=3, hours=5))
    assert len(taken.reference) == 48
    assert [len(w.rows) for w in taken.windows] == [24]
    assert taken.left_out == {"incomplete_window": 24}
    assert [len(w.rows) for w in take(log, config, START + timedelta(days=9)).windows] == [24, 24]


def test_broken_rows_are_counted_by_reason(tmp_path):
    rows = [
        *[row(i) for i in range(4)],
        '{"id": "torn',
        "[1, 2]",
        row(5, latency_seconds="fast"),
        row(6, surprise=1),
        row(7, time="yesterday"),
        row(2),
        row(1, version="0", id="old"),
    ]
    taken = take(write(tmp_path / "log.jsonl", rows), MonitoringConfig(reference_rows=2, window_rows=2), NOW)
    assert taken.left_out == {
        "broken_json": 1,
        "wrong_type": 1,
        "wrong_fields": 2,
        "wrong_time": 1,
        "duplicate_id": 1,
        "other_model": 1,
    }
    assert len(taken.reference) + sum(len(w.rows) for w in taken.windows) + sum(taken.left_out.values()) == len(rows)


def test_a_new_champion_starts_over(tmp_path):
    rows = [row(i) for i in range(6)] + [row(i, version="2") for i in range(6, 9)]
    taken = take(write(tmp_path / "log.jsonl", rows), MonitoringConfig(reference_rows=2, window_rows=1), NOW)
    assert taken.champion == "sql:2"
    assert ids(taken.reference) == ["r006", "r007"]
    assert [ids(w.rows) for w in taken.windows] == [["r008"]]


def test_a_log_can_be_an_artifact_of_parquet(tmp_path):
    write_rows(tmp_path / "log", "prediction/2", Prediction.table([row(i) for i in range(3)]))
    taken = take(tmp_path / "log", MonitoringConfig(reference_rows=2, window_rows=1), NOW)
    assert (len(taken.reference), len(taken.windows), taken.left_out) == (2, 1, {})


def test_names_that_look_alike_in_a_path_have_windows_of_their_own(tmp_path):
    config = MonitoringConfig(reference_rows=1, window_rows=1)
    found = {
        take(write(tmp_path / f"{n}.jsonl", [row(i, version=v) for i in range(2)]), config, NOW).windows[0].id
        for n, v in enumerate(("1/2", "1 2", "1_2"))
    }
    assert len(found) == 3 and not any("/" in name or " " in name for name in found)


def test_a_log_without_a_usable_row_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no usable prediction/2 row"):
        take(write(tmp_path / "log.jsonl", ["{}"]), MonitoringConfig(), NOW)


def test_a_log_that_is_not_there_yet_is_nothing_yet(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    for log in (tmp_path / "none.jsonl", f"file://{tmp_path}/none", tmp_path / "*.csv", empty):
        assert take(log, MonitoringConfig(), NOW) == ("", [], [], {}, {}, 0)


def corrupt_texts(day: Path) -> Path:
    """Change one bit of the prompts in the file of a day."""
    file = next(day.iterdir())
    column = pq.read_metadata(file).row_group(0).column(Prediction.arrow().names.index("prompt"))
    content = bytearray(file.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    return file


def test_texts_are_read_of_the_windows_that_are_compared_alone(tmp_path):
    def days(first: int, last: int) -> list[Prediction]:
        return [Prediction(**row(24 * day + index)) for day in range(first, last) for index in range(4)]

    log = PredictionLog(str(tmp_path))
    log.append(days(0, 10))
    log.label("r024", feedback=1.0)
    log.label("r216", label="SELECT 2")
    log.label("nobody", feedback=1.0)
    log.close()
    corrupt_texts(tmp_path / "date=2025-01-10")  # of a day that is in no window compared: nobody looks
    config = MonitoringConfig(reference_days=2, window_days=1)
    taken = take(tmp_path, config, NOW)
    assert (len(taken.reference), [len(w.rows) for w in taken.windows]) == (8, [4, 4])
    assert taken.windows[-1].id.endswith("-w0008") and taken.quarantined == {}
    assert taken.reference[4].feedback == 1.0 and taken.windows[-1].rows[0].label == "SELECT 2"
    assert taken.num_unknown_labels == 1

    torn = corrupt_texts(tmp_path / "date=2025-01-15")
    taken = take(tmp_path, config, NOW)
    assert list(taken.quarantined) == [str(torn)] and taken.left_out == {"unreadable": 4}
