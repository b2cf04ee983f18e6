"""When does drift start a retraining? A pure function: what it is told is all it knows.

The rules in their order; the first that applies decides. Facts come before restraints, so that the reason names what
is true of the window before it names what keeps the machine still, and a person's word comes before the clock's.

| rule | why it is there |
|---|---|
| minimum rows | of a few rows every test says something |
| no drift | nothing to cure |
| human hold | someone knows what the log does not: an incident, a freeze, a spam attack |
| already running | two retrainings race for the champion, and the second would learn what the first learns |
| consecutive windows | one odd day passes by itself; not asked of a severe drift, of which half the traffic already
  suffers, unless the data themselves look broken |
| cool-down | traffic needs time to show what the last retraining cured |
| budget | where retraining does not help, more of it costs and does not help either |
| quiet hours | last, because they pass soonest: what they delay starts at the first check after them |
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from bloomery.components.core.config import Config
from bloomery.monitoring.config import PolicyConfig, QuietHours
from bloomery.monitoring.drift import DriftReport
from bloomery.monitoring.hold import Hold


class History(NamedTuple):
    """What happened before."""

    previous: Sequence[DriftReport] = ()
    """The windows right before this one, newest first."""
    retrainings: Sequence[datetime] = ()
    """When retrainings were started, in any order."""
    running: str | None = None
    """Key of a retraining that has not ended."""
    hold: Hold | None = None
    """The newest entry of the audit log of holds."""


class Decision(Config):
    """What to do, and why."""

    action: Literal["retrain", "wait", "none"]
    """`none`: the window has not drifted; `wait`: it may have, but a rule says not now."""
    reason: str
    """One sentence for whoever is on call."""


def decide(report: DriftReport, history: History, policy: PolicyConfig, now: datetime) -> Decision:
    """Judge the newest window; the first rule that applies decides. `now` knows its zone."""
    rows = min(report.n_reference, report.n_current)
    if rows < policy.min_rows:
        return Decision(action="wait", reason=f"only {rows} rows to compare; {policy.min_rows} are needed")
    if not _drifted(report, policy):
        needed = f"; {policy.min_drifted_signals} count as drift" if policy.min_drifted_signals > 1 else ""
        return Decision(action="none", reason=f"{_share(report)} drifted{needed}")
    consecutive = 1
    for earlier in history.previous:
        if not _drifted(earlier, policy):
            break
        consecutive += 1
    severe = report.effect >= policy.severe_effect and not report.suspicions
    drift = f"{_share(report)} drifted, {consecutive} window{'s' if consecutive > 1 else ''} in a row"
    if severe:
        drift += f", severely (effect {report.effect:.2f})"
    obstacle = (
        held(history.hold, now)
        or _running(history)
        or (None if severe else _too_few_windows(consecutive, report, policy))
        or _cooling_down(history, policy, now)
        or _spent(history, policy, now)
        or quiet(policy.quiet_hours, now)
    )
    return Decision(action="wait" if obstacle else "retrain", reason="; ".join(filter(None, (drift, obstacle))))


def held(hold: Hold | None, now: datetime) -> str | None:
    """Why a person's hold forbids a start now, or None."""
    if hold is None or not hold.holds(now):
        return None
    end = f" until {_minute(hold.until)}" if hold.until else ""
    return f"retraining is on hold{end} by {hold.who}: {hold.reason}"


def quiet(hours: QuietHours | None, now: datetime) -> str | None:
    """Why the clock forbids a start now, or None."""
    if hours is None:
        return None
    clock = f"{now.astimezone(ZoneInfo(hours.zone)):%H:%M}"
    after_start, before_end = clock >= hours.start, clock < hours.end
    if (after_start and before_end) if hours.start < hours.end else (after_start or before_end):
        return f"quiet hours until {hours.end} in {hours.zone}"
    return None


def _running(history: History) -> str | None:
    return f"the retraining {history.running} has not ended" if history.running else None


def _too_few_windows(consecutive: int, report: DriftReport, policy: PolicyConfig) -> str | None:
    if consecutive >= policy.consecutive_windows:
        return None
    suspicion = f" (and the data look broken: {', '.join(report.suspicions)})" if report.suspicions else ""
    return f"{policy.consecutive_windows} in a row are needed{suspicion}"


def _cooling_down(history: History, policy: PolicyConfig, now: datetime) -> str | None:
    if not history.retrainings:
        return None
    free = max(history.retrainings) + timedelta(hours=policy.cooldown_hours)
    return f"cooling down until {_minute(free)}" if now < free else None


def _spent(history: History, policy: PolicyConfig, now: datetime) -> str | None:
    spent = sum(now - timedelta(days=policy.budget_days) < time <= now for time in history.retrainings)
    if spent < policy.max_retrainings:
        return None
    return f"the budget of {policy.max_retrainings} retrainings in {policy.budget_days:g} days is spent"


def _drifted(report: DriftReport, policy: PolicyConfig) -> bool:
    return len(report.drifted) >= policy.min_drifted_signals


def _share(report: DriftReport) -> str:
    return f"{len(report.drifted)} of {sum(signal.kind == 'model' for signal in report.signals)} signals"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(ZoneInfo('UTC')):%Y-%m-%d %H:%M} UTC"
