"""The recipe's `monitoring:` section: windows, drift thresholds, and when a drift is worth a retraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config


class PolicyConfig(Config):
    """When drifted windows start a retraining; see `policy.decide`."""

    min_rows: int = Field(default=200, ge=1)
    """Rows that the window and the reference must each hold for a decision."""
    min_drifted_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the model signals that must have drifted for the window to count as drifted. Measured on the
    quickstart log: 0 between its first two weeks, 0.36 in the week in which 30 % of the questions are new."""
    consecutive_windows: int = Field(default=2, ge=1)
    """Windows in a row that must have drifted: one odd day is no reason to train."""
    cooldown_hours: float = Field(default=24, ge=0)
    """Hours after a started retraining in which none is started."""
    max_retrainings: int = Field(default=4, ge=1)
    """Retrainings that may start within `budget_days`."""
    budget_days: float = Field(default=30, gt=0)
    """Length of the budget's period in days, counted back from the check."""
    hold: bool = False
    """True: report drift, start nothing. Set during an incident or a freeze."""


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
    """Rows taken from each window, by hash of their ids: costs stay bounded, and at any traffic a test has
    the same power (without it every difference, however small, would be significant)."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance that any signal is called drifted where nothing has changed; shared among them (Bonferroni)."""
    min_auc: float = Field(default=0.55, ge=0.5, lt=1)
    """Area under the ROC curve from which the text classifier tells the windows apart; 0.55 is Evidently's
    threshold for text. Small windows need more, so that `false_alarm_rate` holds."""
    num_examples: int = Field(default=10, ge=0)
    """Rows shown of those least like the reference."""
    policy: PolicyConfig = PolicyConfig()
    """When drift starts a retraining."""
    runner: Literal["local", "cluster"] = "local"
    """`local`: `bloomery run` in the background on this machine; `cluster`: `bloomery submit`, waited for."""
    settings: list[str] = []
    """`--set` values of the retraining; `{window}` stands for the JSONL file of the window's rows (prediction/1), so
    that `tasks.sql.splits.unlabelled={path: "{window}", templates: [{prompt: "{prompt}", answer: "{label}"}]}` samples
    from what is new."""
    seed: int = 17
    """Seed of the folds of the text classifier."""

    @model_validator(mode="after")
    def _windows_are_of_one_kind(self) -> MonitoringConfig:
        if (self.reference_days is None) != (self.window_days is None):
            raise ValueError("reference_days and window_days go together; give both, or neither to count rows")
        return self
