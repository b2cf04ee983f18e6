from datetime import UTC, datetime, timedelta

import pytest

from bloomery.monitoring.config import PolicyConfig, QuietHours
from bloomery.monitoring.drift import DriftReport, Signal
from bloomery.monitoring.hold import Hold
from bloomery.monitoring.policy import History, decide

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
POLICY = PolicyConfig(
    min_rows=100,
    min_drifted_signals=2,
    consecutive_windows=2,
    severe_effect=0.5,
    cooldown_hours=24,
    max_retrainings=2,
    budget_days=30,
)


def signal(name: str, drifted: bool, kind: str = "model", effect: float = 0.2) -> Signal:
    return Signal(
        name=name,
        kind=kind,
        method="ks",
        statistic=0.0 if drifted else 1.0,
        threshold=0.01,
        effect=effect if drifted else 0.0,
        n_reference=200,
        n_current=200,
        mean_reference=0.0,
        mean_current=1.0,
        drifted=drifted,
    )


def report(
    drifted: int, of: int = 4, rows: int = 200, slow: bool = False, spam: bool = False, effect: float = 0.2
) -> DriftReport:
    return DriftReport(
        inputs="",
        window="w",
        champion="sql:1",
        n_reference=500,
        n_current=rows,
        first_time="",
        last_time="",
        signals=[
            *(signal(f"s{i}", i < drifted, effect=effect) for i in range(of)),
            signal("latency_seconds", slow, "service", effect=1.0),
            signal("is_repeated_prompt", spam, "quality", effect=1.0),
        ],
        examples=[],
        novel_words={},
    )


def hours_ago(*hours: float) -> list[datetime]:
    return [NOW - timedelta(hours=h) for h in hours]


def held(is_held: bool = True, until: datetime | None = None) -> Hold:
    return Hold(is_held=is_held, who="kim", time=NOW - timedelta(days=1), reason="migration", until=until)


def at(hour: int, minute: int = 0) -> datetime:
    return NOW.replace(hour=hour, minute=minute)


ONE = {"consecutive_windows": 1}
NIGHT = {"quiet_hours": QuietHours(start="22:00", end="07:00", zone="Asia/Seoul"), **ONE}  # 13:00 to 22:00 UTC
DAY = {"quiet_hours": QuietHours(start="09:00", end="18:00", zone="Asia/Seoul"), **ONE}  # 00:00 to 09:00 UTC


@pytest.mark.parametrize(
    ("newest", "history", "changes", "action", "reason"),
    [
        # drift, in one window and in a row
        (report(2), {"previous": [report(3)]}, {}, "retrain", "2 of 4 signals drifted, 2 windows in a row"),
        (report(1), {"previous": [report(3)]}, {}, "none", "1 of 4 signals drifted; 2 count as drift"),
        (report(1), {}, {"min_drifted_signals": 1, **ONE}, "retrain", "1 of 4"),
        (report(1, slow=True), {"previous": [report(3)]}, {}, "none", "1 of 4"),
        (report(1, spam=True), {"previous": [report(3)]}, {}, "none", "1 of 4"),
        (report(0, of=0), {}, {}, "none", "0 of 0 signals"),
        (report(4), {}, {}, "wait", "1 window in a row; 2 in a row are needed"),
        (report(4), {"previous": [report(1), report(4)]}, {}, "wait", "1 window in a row; 2"),
        (report(4), {}, ONE, "retrain", "1 window in a row"),
        (report(4), {"previous": [report(4)] * 2}, {}, "retrain", "3 windows in a row"),
        # minimum rows
        (report(4, rows=99), {"previous": [report(3)]}, {}, "wait", "only 99 rows to compare; 100 are needed"),
        (report(0, rows=99), {}, {}, "wait", "only 99 rows"),
        (report(4, rows=100), {"previous": [report(3)]}, {}, "retrain", ""),
        # severity
        (report(4, effect=0.5), {}, {}, "retrain", "1 window in a row, severely (effect 0.50)"),
        (report(4, effect=0.49), {}, {}, "wait", "2 in a row are needed"),
        (report(4, effect=0.9, spam=True), {}, {}, "wait", "the data look broken: is_repeated_prompt"),
        (report(4, effect=0.9, spam=True), {"previous": [report(4)]}, {}, "retrain", "2 windows in a row"),
        (report(4, effect=0.9, slow=True), {}, {}, "retrain", "severely"),
        (report(4, effect=0.9), {"retrainings": hours_ago(1)}, {}, "wait", "cooling down"),
        # cool-down
        (report(4), {"retrainings": hours_ago(23.9)}, ONE, "wait", "cooling down until 2025-03-01 12:06 UTC"),
        (report(4), {"retrainings": hours_ago(24)}, ONE, "retrain", ""),
        (report(4), {"retrainings": hours_ago(25, 23)}, ONE, "wait", "cooling down until 2025-03-01 13:00 UTC"),
        # budget
        (report(4), {"retrainings": hours_ago(48, 30)}, ONE, "wait", "the budget of 2 retrainings in 30 days is spent"),
        (report(4), {"retrainings": hours_ago(24 * 30, 48)}, ONE, "retrain", ""),
        # human hold
        (report(4), {"hold": held()}, ONE, "wait", "on hold by kim: migration"),
        (report(4), {"hold": held(until=NOW + timedelta(hours=1))}, ONE, "wait", "on hold until 2025-03-01 13:00 UTC"),
        (report(4), {"hold": held(until=NOW)}, ONE, "retrain", ""),
        (report(4), {"hold": held(is_held=False)}, ONE, "retrain", ""),
        (report(0), {"hold": held()}, ONE, "none", ""),
        # already running
        (report(4), {"running": "sql-1-w1"}, ONE, "wait", "the retraining sql-1-w1 has not ended"),
        (report(4), {"running": "sql-1-w1", "hold": held()}, ONE, "wait", "on hold"),
    ],
)
def test_decide(newest, history, changes, action, reason):
    decision = decide(newest, History(**history), POLICY.model_copy(update=changes), NOW)
    assert decision.action == action
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("now", "hours", "action"),
    [
        (at(12, 59), NIGHT, "retrain"),
        (at(13, 0), NIGHT, "wait"),
        (at(21, 59), NIGHT, "wait"),
        (at(22, 0), NIGHT, "retrain"),
        (at(0, 0), DAY, "wait"),
        (at(8, 59), DAY, "wait"),
        (at(9, 0), DAY, "retrain"),
    ],
)
def test_quiet_hours_are_told_in_their_zone(now, hours, action):
    decision = decide(report(4), History(), POLICY.model_copy(update=hours), now)
    assert decision.action == action
    assert (action == "wait") == ("quiet hours until" in decision.reason)


@pytest.mark.parametrize(
    ("start", "end", "zone"), [("9:00", "10:00", "UTC"), ("09:00", "09:00", "UTC"), ("09:00", "10:00", "Seoul")]
)
def test_wrong_quiet_hours_are_refused(start, end, zone):
    with pytest.raises(ValueError):
        QuietHours(start=start, end=end, zone=zone)
