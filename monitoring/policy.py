"""When does drift start a retraining? A pure function: what it is told is all it knows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from bloomery.components.core.config import Config
from bloomery.monitoring.config import PolicyConfig
from bloomery.monitoring.drift import DriftReport


class History(NamedTuple):
    """What happened before."""

    previous: Sequence[DriftReport]
    """The windows right before this one, newest first."""
    retrainings: Sequence[datetime]
    """When retrainings were started, in any order."""


class Decision(Config):
    """What to do, and why."""

    action: Literal["retrain", "wait", "none"]
    """`none`: the window has not drifted; `wait`: it may have, but a rule says not now."""
    reason: str
    """One sentence for whoever is on call."""


def decide(report: DriftReport, history: History, policy: PolicyConfig, now: datetime) -> Decision:
    """Judge the newest window; the first rule that applies decides."""
    rows = min(report.n_reference, report.n_current)
    if rows < policy.min_rows:
        return Decision(action="wait", reason=f"only {rows} rows to compare; {policy.min_rows} are needed")
    if not _drifted(report, policy):
        return Decision(
            action="none", reason=f"{_share(report)} drifted; {policy.min_drifted_share:.0%} count as drift"
        )
    consecutive = 1
    for earlier in history.previous:
        if not _drifted(earlier, policy):
            break
        consecutive += 1
    drift = f"{_share(report)} drifted, {consecutive} window{'s' if consecutive > 1 else ''} in a row"
    if policy.hold:
        return Decision(action="wait", reason=f"{drift}; retraining is on hold")
    if consecutive < policy.consecutive_windows:
        return Decision(action="wait", reason=f"{drift}; {policy.consecutive_windows} in a row are needed")
    free = max(history.retrainings, default=None)
    if free is not None and now < (free := free + timedelta(hours=policy.cooldown_hours)):
        return Decision(action="wait", reason=f"{drift}; cooling down until {free:%Y-%m-%d %H:%M} UTC")
    spent = sum(now - timedelta(days=policy.budget_days) < time <= now for time in history.retrainings)
    if spent >= policy.max_retrainings:
        return Decision(
            action="wait",
            reason=f"{drift}; the budget of {spent} retrainings in {policy.budget_days:g} days is spent",
        )
    return Decision(action="retrain", reason=drift)


def _drifted(report: DriftReport, policy: PolicyConfig) -> bool:
    return report.drifted_share >= policy.min_drifted_share


def _share(report: DriftReport) -> str:
    votes = [signal.drifted for signal in report.signals if signal.kind == "model"]
    return f"{sum(votes)} of {len(votes)} signals"
