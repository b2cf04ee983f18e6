"""How a window differs from the reference: Evidently over our own descriptors, and a text classifier.

The only file that imports Evidently. It is imported late: it takes about five CPU seconds.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bloomery.components.core.config import Config, digest
from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring import classifier, descriptors
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.snapshot import Window

MIN_VALUES = 30
"""Values a side that a sparse column, such as feedback, must have to be tested."""

SERVICE = ("latency_seconds",)
"""Signals about the service. They are reported and tested, but retraining a model does not cure them."""


class Signal(Config):
    """One thing that was compared."""

    name: str
    """`prompt_text` for the classifier, else the column."""
    kind: Literal["model", "service"]
    """`model`: counts towards a retraining; `service`: shown only."""
    method: str
    """`ks`: two-sample Kolmogorov-Smirnov test by Evidently; `char_ngram_auc`: the classifier."""
    statistic: float
    """p-value of `ks`, AUC of `char_ngram_auc`."""
    threshold: float
    """Drifted below it for `ks`, above it for `char_ngram_auc`."""
    n_reference: int
    """Values compared on the side of the reference."""
    n_current: int
    """Values compared on the side of the window."""
    mean_reference: float | None
    """Mean of the column in the reference; none for text."""
    mean_current: float | None
    """Mean of the column in the window; none for text."""
    drifted: bool


class Example(Config):
    """A row of the window that is unlike the reference."""

    id: str
    time: str
    prompt: str
    response: str
    score: float
    """How surely the classifier places it outside of the reference, in [0, 1]."""
    novel_words: list[str]
    """Its words that the reference does not have."""


class DriftReport(Config):
    """One window against the reference."""

    inputs: str
    """Digest of the rows and settings that were compared."""
    window: str
    champion: str
    n_reference: int
    """Rows of the reference before sampling."""
    n_current: int
    """Rows of the window before sampling."""
    first_time: str
    last_time: str
    signals: list[Signal]
    examples: list[Example]
    """The rows least like the reference, at most one for the same novel words."""
    novel_words: dict[str, int]
    """Words that the reference does not have, and in how many rows of the window they occur; the 15 most
    frequent."""

    @property
    def drifted_share(self) -> float:
        """Share of the `model` signals that drifted."""
        votes = [signal.drifted for signal in self.signals if signal.kind == "model"]
        return sum(votes) / len(votes) if votes else 0.0


def compare(
    reference: Sequence[Prediction],
    window: Window,
    champion: str,
    config: MonitoringConfig,
    html: Path | None = None,
) -> DriftReport:
    """Compare `window` with `reference`, both non-empty; writes Evidently's page to `html` if given."""
    old, new = _sample(reference, config.sample_rows), _sample(window.rows, config.sample_rows)
    prompts = descriptors.Vocabulary(row.prompt for row in old)
    responses = descriptors.Vocabulary(row.response for row in old)
    before = descriptors.columns(old, prompts, responses, is_reference=True)
    after = descriptors.columns(new, prompts, responses, is_reference=False)
    tested = [
        name for name in before if min(_num_values(before[name]), _num_values(after[name])) >= MIN_VALUES
    ]
    tested = [name for name in tested if len({*before[name], *after[name]}) > 1]
    alpha = config.false_alarm_rate / (len(tested) + 1)
    auc, scores = classifier.out_of_fold_scores([r.prompt for r in old], [r.prompt for r in new], config.seed)
    threshold = classifier.auc_threshold(len(old), len(new), config.min_auc, alpha)
    text = Signal(
        name="prompt_text",
        kind="model",
        method="char_ngram_auc",
        statistic=auc,
        threshold=threshold,
        n_reference=len(old),
        n_current=len(new),
        mean_reference=None,
        mean_current=None,
        drifted=auc > threshold,
    )
    verdicts = _evidently(
        {name: before[name] for name in tested}, {name: after[name] for name in tested}, alpha, html
    )
    return DriftReport(
        inputs=inputs_digest(reference, window, config),
        window=window.id,
        champion=champion,
        n_reference=len(reference),
        n_current=len(window.rows),
        first_time=window.rows[0].time,
        last_time=window.rows[-1].time,
        signals=[
            text,
            *(_signal(name, before[name], after[name], alpha, *verdicts[name]) for name in tested),
        ],
        examples=_examples(new, scores, prompts, config.num_examples),
        novel_words=_novel_words(new, prompts),
    )


def inputs_digest(reference: Sequence[Prediction], window: Window, config: MonitoringConfig) -> str:
    """Digest of what a report depends on: all but the policy and what is done about it."""
    rows = [content_id(row.model_dump_json()) for row in (*reference, *window.rows)]
    return digest([rows, config.model_dump(mode="json", exclude={"policy", "runner", "settings"})])


def _sample(rows: Sequence[Prediction], limit: int) -> list[Prediction]:
    """At most `limit` rows, by hash of their ids, in the order of the window."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {row.id for row in sorted(rows, key=lambda row: content_id(row.id))[:limit]}
    return [row for row in rows if row.id in chosen]


def _evidently(
    before: dict[str, list[Any]], after: dict[str, list[Any]], alpha: float, html: Path | None
) -> dict[str, tuple[float, bool]]:
    """(p-value, drifted) by column; the verdict is the status of Evidently's test."""
    if not before:
        return {}
    with warnings.catch_warnings(action="ignore"):  # numpy's, about correlations of columns that do not vary
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        names = list(before)
        definition = DataDefinition(numerical_columns=names)
        reference, current = (
            Dataset.from_pandas(pd.DataFrame(values, dtype=float), data_definition=definition)
            for values in (before, after)
        )
        # Named, because Evidently's own choice changes at 1,000 rows, and the threshold's meaning with it.
        preset = DataDriftPreset(columns=names, num_method="ks", num_threshold=alpha)
        result = Report([preset], include_tests=True).run(current, reference)
        if html is not None:
            result.save_html(str(html))
        facts = json.loads(result.json())
    values = {metric["id"]: metric["value"] for metric in facts["metrics"]}
    verdicts = {}
    for test in facts["tests"]:
        metric = test["metric_config"]
        column = metric["params"].get("column")
        if column is not None:
            verdicts[column] = (float(values[metric["metric_id"]]), test["status"] == "FAIL")
    return verdicts


def _signal(
    name: str,
    before: list[float | None],
    after: list[float | None],
    alpha: float,
    p_value: float,
    drifted: bool,
) -> Signal:
    old, new = ([value for value in values if value is not None] for values in (before, after))
    return Signal(
        name=name,
        kind="service" if name in SERVICE else "model",
        method="ks",
        statistic=p_value,
        threshold=alpha,
        n_reference=len(old),
        n_current=len(new),
        mean_reference=sum(old) / len(old),
        mean_current=sum(new) / len(new),
        drifted=drifted,
    )


def _num_values(values: list[float | None]) -> int:
    return sum(value is not None for value in values)


def _examples(
    rows: list[Prediction], scores: list[float], vocabulary: descriptors.Vocabulary, limit: int
) -> list[Example]:
    examples: list[Example] = []
    shown: set[str] = set()
    for score, row in sorted(zip(scores, rows, strict=True), key=lambda item: (-item[0], item[1].id)):
        novel = vocabulary.novel_words(row.prompt)
        if len(examples) == limit:
            break
        if not set(novel) <= shown:
            shown.update(novel)
            examples.append(
                Example(
                    id=row.id,
                    time=row.time,
                    prompt=row.prompt[:300],
                    response=row.response[:300],
                    score=round(score, 3),
                    novel_words=novel,
                )
            )
    return examples


def _novel_words(rows: list[Prediction], vocabulary: descriptors.Vocabulary) -> dict[str, int]:
    counts = Counter(word for row in rows for word in vocabulary.novel_words(row.prompt))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:15])
