from datetime import UTC, datetime, timedelta

import pytest

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.monitoring import hold, home

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def entry(is_held: bool, **changes) -> hold.Hold:
    return hold.Hold(is_held=is_held, who="kim", time=NOW, reason="이관 중", **changes)


def test_the_last_line_of_the_audit_log_is_what_holds(tmp_path):
    assert hold.newest(tmp_path) is None
    hold.record(tmp_path, entry(True))
    assert hold.newest(tmp_path) == entry(True)
    hold.record(tmp_path, entry(False))
    assert not hold.newest(tmp_path).holds(NOW)
    assert len(hold.log_file(tmp_path).read_text().splitlines()) == 2


def test_a_hold_ends_by_itself():
    until = entry(True, until=NOW + timedelta(hours=1))
    assert until.holds(NOW) and not until.holds(NOW + timedelta(hours=1))


def test_an_end_in_the_past_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has passed"):
        hold.record(tmp_path, entry(True, until=NOW))


def test_an_unreadable_entry_is_not_taken_for_no_hold(tmp_path):
    hold.record(tmp_path, entry(True))
    with hold.log_file(tmp_path).open("a") as stream:
        stream.write("{\n")
    with pytest.raises(DataError, match="line 2"):
        hold.newest(tmp_path)


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix"])
def test_a_store_without_a_bucket_is_no_folder(uri):
    with pytest.raises(ConfigError, match="expected a folder or s3://bucket/prefix"), home.at(uri):
        pass
