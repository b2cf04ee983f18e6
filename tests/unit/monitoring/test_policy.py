from datetime import UTC, datetime, timedelta

import pytest

from bloomery.monitoring.config import PolicyConfig
from bloomery.monitoring.drift import DriftReport, Signal
from bloomery.monitoring.policy import History, decide

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
POLICY = PolicyConfig(
    min_rows=100,
    min_drifted_share=0.5,
    consecutive_windows=2,
    cooldown_hours=24,
    max_retrainings=2,
    budget_days=30,
)


def signal(name: str, drifted: bool, kind: str = "model") -> Signal:
    return Signal(
        name=name,
        kind=kind,
        method="ks",
        statistic=0.0 if drifted else 1.0,
        threshold=0.01,
        n_reference=200,
        n_current=200,
        mean_reference=0.0,
        mean_current=1.0,
        drifted=drifted,
    )


def report(drifted: int, of: int = 4, rows: int = 200, slow: bool = False) -> DriftReport:
    return DriftReport(
        inputs="",
        window="w",
        champion="sql:1",
        n_reference=500,
        n_current=rows,
        first_time="",
        last_time="",
        signals=[
            *(signal(f"s{i}", i < drifted) for i in range(of)),
            signal("latency_seconds", slow, "service"),
        ],
        examples=[],
        novel_words={},
    )


def hours_ago(*hours: float) -> list[datetime]:
    return [NOW - timedelta(hours=h) for h in hours]


@pytest.mark.parametrize(
    ("newest", "previous", "retrainings", "changes", "action", "reason"),
    [
        (report(2), [report(3)], [], {}, "retrain", "2 of 4 signals drifted, 2 windows in a row"),
        (report(1), [report(3)], [], {}, "none", "1 of 4 signals drifted; 50% count as drift"),
        (report(1, slow=True), [report(3)], [], {}, "none", "1 of 4"),
        (report(4, rows=99), [report(3)], [], {}, "wait", "only 99 rows to compare; 100 are needed"),
        (report(0, rows=99), [report(3)], [], {}, "wait", "only 99 rows"),
        (report(4), [], [], {}, "wait", "1 window in a row; 2 in a row are needed"),
        (report(4), [report(1), report(4)], [], {}, "wait", "1 window in a row; 2"),
        (report(4), [], [], {"consecutive_windows": 1}, "retrain", "1 window in a row"),
        (report(4), [report(4)] * 2, [], {}, "retrain", "3 windows in a row"),
        (report(4), [report(4)], hours_ago(23.9), {}, "wait", "cooling down until 2025-03-01 12:06 UTC"),
        (report(4), [report(4)], hours_ago(24), {}, "retrain", ""),
        (report(4), [report(4)], hours_ago(25, 23), {}, "wait", "cooling down until 2025-03-01 13:00 UTC"),
        (
            report(4),
            [report(4)],
            hours_ago(48, 30),
            {},
            "wait",
            "the budget of 2 retrainings in 30 days is spent",
        ),
        (report(4), [report(4)], hours_ago(24 * 30, 48), {}, "retrain", ""),
        (report(4), [report(4)], [], {"hold": True}, "wait", "retraining is on hold"),
        (report(0), [report(4)], [], {"hold": True}, "none", ""),
        (report(0, of=0), [], [], {}, "none", "0 of 0 signals"),
    ],
)
def test_decide(newest, previous, retrainings, changes, action, reason):
    decision = decide(newest, History(previous, retrainings), POLICY.model_copy(update=changes), NOW)
    assert decision.action == action
    assert reason in decision.reason
