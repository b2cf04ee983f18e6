"""The recipe's `monitoring:` section: windows, drift thresholds, and when a drift is worth a retraining."""

from __future__ import annotations

import re
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bloomery.components.core.config import SECRET, Config, Seed

CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"


class QuietHours(Config):
    """Hours of every day in which no retraining is started."""

    start: str = Field(pattern=CLOCK)
    """First minute, `HH:MM`."""
    end: str = Field(pattern=CLOCK)
    """First minute after, `HH:MM`; earlier than `start` where the hours reach over midnight."""
    zone: str
    """IANA time zone that the two are told in, such as `Asia/Seoul`; no default, for a wrong one is silent."""

    @field_validator("zone")
    @classmethod
    def _zone_is_known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no IANA time zone; an example is Asia/Seoul") from None
        return zone

    @model_validator(mode="after")
    def _hours_are_not_empty(self) -> QuietHours:
        if self.start == self.end:
            raise ValueError("start and end are equal; `bloomery monitor hold` stops retraining at all hours")
        return self


class PolicyConfig(Config):
    """When drifted windows start a retraining; see `policy.decide`."""

    min_rows: int = Field(default=200, ge=1)
    """Rows that the window and the reference must each hold for a decision."""
    min_drifted_signals: int = Field(default=1, ge=1)
    """Model signals that must have drifted for the window to count as drifted. One is enough, because the chance of
    a false alarm is held for all of them together (`false_alarm_rate`) and a shift need not show in many: a new topic
    of the usual length and language moves the words alone."""
    consecutive_windows: int = Field(default=2, ge=1)
    """Windows in a row that must have drifted: one odd day is no reason to train."""
    severe_effect: float = Field(default=0.5, gt=0, le=1)
    """Effect size of a drifted model signal from which one window is enough. 0.5: at least half of the traffic is
    where none, or little, was before."""
    cooldown_hours: float = Field(default=24, ge=0)
    """Hours after a started retraining in which none is started."""
    max_retrainings: int = Field(default=4, ge=1)
    """Retrainings that may start within `budget_days`."""
    budget_days: float = Field(default=30, gt=0)
    """Length of the budget's period in days, counted back from the check."""
    quiet_hours: QuietHours | None = None
    """Hours in which none is started, such as those in which the machines serve; the next check after them does."""


class AlertsConfig(Config):
    """Who is told."""

    webhook: str | None = None
    """Name of the environment variable, on a cluster of the key of the Secret, with the address that takes a JSON
    object by POST with the field `text`, as Slack's incoming webhooks do. The address itself is a secret, and a recipe
    is copied into pipelines and reports. None: nobody is told."""
    on: list[Literal["retrain", "wait", "failed"]] = ["retrain", "failed"]
    """`retrain`: a retraining was started; `wait`: a window has drifted, and a rule says not now; `failed`: a
    retraining could not be started."""

    @field_validator("webhook")
    @classmethod
    def _is_a_name(cls, webhook: str | None) -> str | None:
        if webhook is not None and not re.fullmatch(r"[A-Za-z_]\w*", webhook):
            raise PydanticCustomError(
                SECRET,
                "expected the name of an environment variable that holds the address, such as TEAM_WEBHOOK: whoever "
                "knows the address can write to it, and a recipe is copied into pipelines and reports",
            )
        return webhook


class MonitoringConfig(Config):
    """How the prediction log is watched."""

    reference_rows: int = Field(default=800, ge=1)
    """The reference window: the first rows that the current model served."""
    window_rows: int = Field(default=400, ge=1)
    """Rows of every window after the reference; only a full window is judged."""
    reference_days: float | None = Field(default=None, gt=0)
    """Reference window in days from the first row, instead of `reference_rows`; needs `window_days`."""
    window_days: float | None = Field(default=None, gt=0)
    """Length of every later window in days, instead of `window_rows`; needs `reference_days`."""
    sample_rows: int = Field(default=1000, ge=50)
    """Rows taken from a window, and at most twice as many from the reference, by hash of their ids: costs stay
    bounded, and at any traffic a test has the same power."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance that any signal is called drifted where nothing has changed; shared among them (Bonferroni)."""
    min_effect: float = Field(default=0.05, ge=0, lt=1)
    """Effect size below which a difference is none, however certain: the Kolmogorov-Smirnov distance, of a column of
    yes and no the difference of its shares. 0.05: a twentieth of the rows would have to change for none to be left."""
    encoder: str | None = None
    """Folder of the checkpoint whose last hidden states, averaged over a prompt, are compared. None: the champion's
    own, where the registry knows it; empty: no embedding drift."""
    embedding_rows: int = Field(default=400, ge=50)
    """Rows of each sample that are embedded: a pass of a model costs more than all the rest."""
    num_examples: int = Field(default=10, ge=0)
    """Rows shown of those least like the reference, and of the reference's usual ones."""
    drifted_rows: int = Field(default=2000, ge=1)
    """Most rows of the slice that retraining learns from (`drifted.jsonl`), evenly over its topics."""
    policy: PolicyConfig = PolicyConfig()
    """When drift starts a retraining."""
    alerts: AlertsConfig = AlertsConfig()
    """Who is told of it."""
    runner: Literal["local", "cluster"] = "local"
    """`local`: `bloomery run` in the background on this machine; `cluster`: `bloomery submit`, waited for."""
    settings: list[str] = []
    """`--set` values of the retraining. `{window}` stands for the JSONL file of the window's rows (prediction/2), and
    `{drifted}` for that of the drifted slices of all windows in a row that led to the decision, so that
    `tasks.sql.splits.unlabelled={path: "{drifted}", templates: [{prompt: "{prompt}", answer: "{label}"}]}` samples
    from what is new; `{messages: messages, answer: "{label}"}` takes conversations of several turns as such."""
    seed: Seed = 17
    """Seed of the classifiers' folds and of the drifted slice's topics."""

    @model_validator(mode="after")
    def _windows_are_of_one_kind(self) -> MonitoringConfig:
        if (self.reference_days is None) != (self.window_days is None):
            raise ValueError("reference_days and window_days go together; give both, or neither to count rows")
        return self
