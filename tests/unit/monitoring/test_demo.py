import json

import pytest

from bloomery.components.core.errors import ConfigError
from bloomery.monitoring import demo
from bloomery.monitoring.demo import Asked


def rows(week, scores, is_new=False, version="1"):
    return [Asked(week, is_new, score, version, 0.0) for score in scores]


ASKED = [
    *rows(1, [1, 1, 1, 0] * 10),
    *rows(2, [1, 1, 0, 0] * 10),
    *rows(3, [0] * 20, is_new=True),
    *rows(3, [1] * 20),
    *rows(4, [0] * 40, is_new=True),
    *rows(5, [1, 0] * 20, is_new=True, version="2"),
]


def test_recovery_is_the_last_week_against_the_first_two():
    difference, stderr = demo._recovery(ASKED)
    assert difference == pytest.approx(0.5 - 50 / 80)
    # s / sqrt(n) with n - 1: 0.625 * 0.375 / 79 and 0.25 / 39
    assert stderr == pytest.approx((0.625 * 0.375 / 79 + 0.25 / 39) ** 0.5)


def test_the_timeline_has_a_point_for_every_half_week_with_enough_questions(tmp_path):
    assert demo._means(ASKED, ASKED)[:3] == [(20, 75.0), (40, 75.0), (60, 50.0)]
    new = [row for row in ASKED if row.is_new]
    assert demo._means(ASKED, new) == [(100, 0.0), (140, 0.0), (160, 0.0), (180, 50.0), (200, 50.0)]
    story = {
        "versions": ["1", "2"],
        "events": [(0.5, "week 1: <b>")],
        "weeks": [(1, "75 %")],
        "recovery": (-0.125, 0.09),
        "decision": "decision.md",
        "report": "report.html",
    }
    (tmp_path / "demo").mkdir()
    page = demo._write_page(tmp_path, ASKED, story).read_text()
    assert "-12.5 ± 9.0 points" in page and "version 2" in page and "week 1: &lt;b&gt;" in page


def test_weeks_are_read_in_order(tmp_path):
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text("\n".join(json.dumps({"week": week, "question": "q"}) for week in (1, 1, 2)))
    assert [len(found) for found in demo._weeks(traffic).values()] == [2, 1]


def test_there_has_to_be_a_champion(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back afterwards: the demonstration sets it
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="no champion of shop-sql to serve"):
        demo.drift(tmp_path, [], print)
