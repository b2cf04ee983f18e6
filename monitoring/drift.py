"""How a window differs from the reference: Evidently over our own descriptors, and classifiers.

The only file that imports Evidently. It is imported late: it takes about five CPU seconds.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from bloomery.components.core.config import Config, digest
from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring import classifier, descriptors, drifted
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.drifted import DriftedRow
from bloomery.monitoring.embedding import Encoder
from bloomery.monitoring.snapshot import Window

Columns = dict[str, list[float | None]]
"""The values of each column, a row each; None where the row has none."""

MIN_VALUES = 30
"""Values a side that a sparse column, such as feedback, must have to be tested."""
MAX_SCORED_ROWS = 20_000
"""Rows of a window, the sample's included, among which the drifted slice is looked for: 25 microseconds each."""

REFERENCE_FACTOR = 2
"""So many times the window's rows are sampled from the reference: it is pinned, and the more of the old is known, the
less of it looks new. Where a fifth of 1,000 rows of traffic turned to new intents of the same bank, 10 of 10 windows
were caught against 2,000 reference rows, and 7 of 10 against 1,000."""

SERVICE = ("latency_seconds",)
"""Signals about the service. They are reported and tested, but retraining a model does not cure them."""
QUALITY = ("is_empty_prompt", "is_broken_prompt", "is_repeated_prompt")
"""Signals about the data: what they show, a client that repeats itself or decodes wrongly, is not to be learned."""


class Signal(Config):
    """One thing that was compared."""

    name: str
    """`prompt_text` and `prompt_embedding` for the classifiers, else the column."""
    kind: Literal["model", "quality", "service"]
    """`model`: counts towards a retraining; `quality`: is a reason to doubt the data; `service`: shown only."""
    method: str
    """`classifier`: see `classifier.py`; by Evidently `ks`, the two-sample Kolmogorov-Smirnov test, and for columns of
    yes and no `z`, the test of two proportions: its Fisher test wants windows of equal length."""
    statistic: float
    """p-value of `ks` and `z`; of `classifier` the share of the window among the tenth that looks newest."""
    threshold: float
    """Significant below it for p-values, above it for `classifier`."""
    effect: float
    """Kolmogorov-Smirnov distance, in [0, 1]: at least this share of the rows would have to change for no difference
    to be left. Of the classifiers it is that of their scores."""
    n_reference: int
    """Values compared on the side of the reference."""
    n_current: int
    """Values compared on the side of the window."""
    mean_reference: float | None
    """Mean of the column in the reference; none for the classifiers."""
    mean_current: float | None
    """Mean of the column in the window; none for the classifiers."""
    drifted: bool
    """Significant, and the effect is at least `min_effect`."""


class Example(Config):
    """A row to look at."""

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
    not_compared: dict[str, str] = {}
    """Signals that were asked for and could not be computed, and why."""
    examples: list[Example]
    """The rows least like the reference, at most one for the same novel words; without any such word, those with
    different prompts."""
    usual: list[Example] = []
    """Rows of the reference that are most like it, to see the others beside."""
    novel_words: dict[str, int]
    """Words that the reference does not have, and in how many rows of the window they occur; the 15 most
    frequent."""
    num_drifted_rows: int = 0
    """Rows of the drifted slice."""
    num_drifted_topics: int = 0
    """Topics of the drifted slice."""

    @property
    def drifted(self) -> list[str]:
        """Names of the `model` signals that drifted."""
        return [signal.name for signal in self.signals if signal.kind == "model" and signal.drifted]

    @property
    def effect(self) -> float:
        """The largest effect of the `model` signals that drifted; 0 if none did."""
        return max((s.effect for s in self.signals if s.kind == "model" and s.drifted), default=0.0)

    @property
    def suspicions(self) -> list[str]:
        """Names of the `quality` signals that drifted upwards: the data look worse than they did."""
        return [
            signal.name
            for signal in self.signals
            if signal.kind == "quality" and signal.drifted and (signal.mean_current or 0) > (signal.mean_reference or 0)
        ]


class Compared(NamedTuple):
    """What came of a comparison."""

    report: DriftReport
    drifted: list[DriftedRow]
    """The slice of the window to retrain on."""


def compare(
    reference: Sequence[Prediction],
    window: Window,
    champion: str,
    config: MonitoringConfig,
    html: Path | None = None,
    encoder: Encoder | None = None,
    not_compared: Mapping[str, str] = MappingProxyType({}),
) -> Compared:
    """Compare `window` with `reference`, both non-empty; writes Evidently's page to `html` if given.

    The false alarms that are allowed go half to the classifiers and half to the columns: the classifiers see what no
    column was made for. Embeddings are compared where there is an `encoder`; `not_compared` goes into the report.
    """
    old, new = _sample(reference, REFERENCE_FACTOR * config.sample_rows), _sample(window.rows, config.sample_rows)
    prompts = descriptors.Vocabulary(row.prompt for row in old)
    before, after = _columns(old, new, prompts)
    sampled = {row.id for row in new}
    further = [row for row in _sample(window.rows, MAX_SCORED_ROWS) if row.id not in sampled]
    text = classifier.compare_texts(
        [row.prompt for row in old], [row.prompt for row in new], config.seed, [row.prompt for row in further]
    )
    alpha = config.false_alarm_rate / 2
    signals = [_classified("prompt_text", text, alpha / (1 + (encoder is not None)), config)]
    if encoder is not None:
        few = [_sample(side, config.embedding_rows) for side in (old, new)]
        vectors = classifier.compare_vectors(*(encoder([row.prompt for row in side]) for side in few), config.seed)
        signals.append(_classified("prompt_embedding", vectors, alpha / 2, config))
    tested = [name for name in before if _can_be_tested(before[name], after[name])]
    alpha /= max(1, len(tested))
    before, after = ({name: side[name] for name in tested} for side in (before, after))
    if html is not None and tested:
        _write_page(before, after, alpha, html)
    verdicts = _tests(before, after, alpha)
    signals += [_signal(name, before[name], after[name], alpha, *verdicts[name], config) for name in tested]
    rows = drifted.select(
        [*new, *further], [*text.current, *text.others], text.reference, config.drifted_rows, config.seed
    )
    report = DriftReport(
        inputs=inputs_digest(reference, window, config, encoder is not None),
        window=window.id,
        champion=champion,
        n_reference=len(reference),
        n_current=len(window.rows),
        first_time=window.rows[0].time,
        last_time=window.rows[-1].time,
        signals=signals,
        not_compared=dict(not_compared),
        examples=_examples(new, text.current, prompts, config.num_examples),
        usual=_usual(old, text.reference, config.num_examples),
        novel_words=_novel_words(new, prompts),
        num_drifted_rows=len(rows),
        num_drifted_topics=len({row.topic for row in rows}),
    )
    return Compared(report, rows)


def _columns(old: list[Prediction], new: list[Prediction], prompts: descriptors.Vocabulary) -> tuple[Columns, Columns]:
    responses = descriptors.Vocabulary(row.response for row in old)
    spoken = descriptors.language_columns([row.prompt for row in old], [row.prompt for row in new])
    num_rows = min(len(old), len(new))
    before, after = (
        {
            **descriptors.columns(side, prompts, responses, is_reference=side is old),
            **languages,
            "is_repeated_prompt": descriptors.repeats(side, num_rows),
        }
        for side, languages in zip((old, new), spoken, strict=True)
    )
    return before, after


def inputs_digest(
    reference: Sequence[Prediction], window: Window, config: MonitoringConfig, has_encoder: bool = False
) -> str:
    """Digest of what a report depends on: all but the policy and what is done about it.

    A row is what was served, by its id, and what arrived later.
    """
    rows = hashlib.sha256()
    for row in (*reference, *window.rows):
        rows.update(f"{row.id}\0{row.feedback}\0{row.label}\0".encode(errors="surrogatepass"))
    settings = config.model_dump(mode="json", exclude={"policy", "alerts", "runner", "settings"})
    return digest([len(reference), rows.hexdigest(), settings, has_encoder])


def _sample(rows: Sequence[Prediction], limit: int) -> list[Prediction]:
    """At most `limit` rows, by hash of their ids, in the order of the window."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {row.id for row in sorted(rows, key=lambda row: content_id(row.id))[:limit]}
    return [row for row in rows if row.id in chosen]


def _tests(before: Columns, after: Columns, alpha: float) -> dict[str, tuple[str, float, bool]]:
    """(method, p-value, significant) by column; the test and its verdict are Evidently's."""
    if not before:
        return {}
    verdicts = {}
    with warnings.catch_warnings(action="ignore"):  # Evidently's imports; scipy's, where it approximates a p-value
        import pandas as pd
        from evidently.legacy.calculations.stattests import ks_stat_test, z_stat_test
        from evidently.legacy.core import ColumnType

        for name in before:
            old, new = (pd.Series(side[name], dtype=float).dropna() for side in (before, after))
            if _is_binary(old, new):
                method, found = "z", z_stat_test(old, new, ColumnType.Categorical, alpha)
            else:
                method, found = "ks", ks_stat_test(old, new, ColumnType.Numerical, alpha)
            verdicts[name] = (method, float(found.drift_score), bool(found.drifted))
    return verdicts


def _write_page(before: Columns, after: Columns, alpha: float, html: Path) -> None:
    """Evidently's page of the same tests. Its pictures cost twice what all the rest of a comparison does."""
    with warnings.catch_warnings(action="ignore"):  # numpy's, about correlations of columns that do not vary
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        frames = [pd.DataFrame(side, dtype=float) for side in (before, after)]
        # A column with gaps cannot be categorical there.
        binary = [name for name in before if _is_binary(*(frame[name] for frame in frames))]
        numerical = [name for name in before if name not in binary]
        definition = DataDefinition(numerical_columns=numerical, categorical_columns=binary)
        reference, current = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
        # Named, because Evidently's own choice changes at 1,000 rows, and the threshold's meaning with it.
        preset = DataDriftPreset(
            columns=list(before), num_method="ks", num_threshold=alpha, cat_method="z", cat_threshold=alpha
        )
        Report([preset], include_tests=True).run(current, reference).save_html(str(html))


def _is_binary(old: Any, new: Any) -> bool:
    return {*old.unique(), *new.unique()} == {0.0, 1.0}


def _classified(name: str, found: classifier.Comparison, alpha: float, config: MonitoringConfig) -> Signal:
    threshold = classifier.top_threshold(len(found.reference), len(found.current), alpha)
    return Signal(
        name=name,
        kind="model",
        method="classifier",
        statistic=found.top_share,
        threshold=threshold,
        effect=found.effect,
        n_reference=len(found.reference),
        n_current=len(found.current),
        mean_reference=None,
        mean_current=None,
        drifted=found.top_share > threshold and found.effect >= config.min_effect,
    )


def _signal(
    name: str,
    before: list[float | None],
    after: list[float | None],
    alpha: float,
    method: str,
    p_value: float,
    significant: bool,
    config: MonitoringConfig,
) -> Signal:
    old, new = ([value for value in values if value is not None] for values in (before, after))
    effect = classifier.distance(old, new)
    return Signal(
        name=name,
        kind="service" if name in SERVICE else "quality" if name in QUALITY else "model",
        method=method,
        statistic=p_value,
        threshold=alpha,
        effect=effect,
        n_reference=len(old),
        n_current=len(new),
        mean_reference=sum(old) / len(old),
        mean_current=sum(new) / len(new),
        drifted=significant and effect >= config.min_effect,
    )


def _can_be_tested(before: list[float | None], after: list[float | None]) -> bool:
    """True if both sides have values enough, and they are not all the same."""
    num_values = min(sum(value is not None for value in side) for side in (before, after))
    return num_values >= MIN_VALUES and len({*before, *after} - {None}) > 1


def _usual(rows: list[Prediction], scores: list[float], limit: int) -> list[Example]:
    return _distinct(sorted(zip(scores, rows, strict=True), key=lambda item: (item[0], item[1].id)), limit)


def _distinct(ranked: list[tuple[float, Prediction]], limit: int) -> list[Example]:
    """The first rows with different prompts."""
    found: dict[str, Example] = {}
    for score, row in ranked:
        if len(found) == limit:
            break
        found.setdefault(row.prompt, _example(row, score, []))
    return list(found.values())


def _example(row: Prediction, score: float, novel: list[str]) -> Example:
    return Example(
        id=row.id,
        time=row.time,
        prompt=row.prompt[:300],
        response=row.response[:300],
        score=round(score, 3),
        novel_words=novel,
    )


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
            examples.append(_example(row, score, novel))
    return examples or _distinct(sorted(zip(scores, rows, strict=True), key=lambda item: (-item[0], item[1].id)), limit)


def _novel_words(rows: list[Prediction], vocabulary: descriptors.Vocabulary) -> dict[str, int]:
    counts = Counter(word for row in rows for word in vocabulary.novel_words(row.prompt))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:15])
