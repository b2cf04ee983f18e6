"""A quality score learned from examples: the probability that a text is like the good ones and not like the bad.

Features are counts of words, pairs of words and character n-grams, hashed to a fixed number of columns (Weinberger
et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009): no tokenizer, so Korean and English are read
alike. The n-grams run over spaces, because wrong spacing and order are what machine-made text gets wrong. Words and
characters are weighted by tf-idf and brought to unit length apart from each other; else the characters, fifteen a
word, drown the words: on 50 Korean paragraphs a class, translated by people or by machine, the area under the ROC
curve was .91 together and .93 apart. Logistic regression weighs them, and a sigmoid fitted on out-of-fold values (Platt
1999) turns its value into a probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pydantic import Field

from bloomery.components.core.config import Config
from bloomery.components.core.data.tables import SourceConfig
from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.statistics import mean_stderr

CHARACTER_NGRAMS = (3, 5)
"""Shortest and longest character n-gram."""
MAX_CHARACTERS = 20_000
"""A text is judged by this many characters from its start: ten pages tell, and a book costs no more."""
INVERSE_REGULARISATION = 10.0
"""`C` of the logistic regression; 1, 10 and 100 were within .02 of each other on every set measured."""

_COLUMN_BITS = 16
_NUM_COLUMNS = 1 << _COLUMN_BITS
"""Hash columns of the words, and again of the characters; four times as many changed no area under the curve by more
than .01, and training took three to four times as long."""
_TEXTS_PER_BATCH = 400
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_HALF, _TO_COLUMN = np.uint64(32), np.uint64(64 - _COLUMN_BITS)


class LearnedQualityConfig(Config):
    """A classifier trained in the step from good and bad examples, and the score a document needs."""

    good: SourceConfig
    """Texts of the kind to keep; some hundreds, in the languages of the documents."""
    bad: SourceConfig
    """Texts of the kind to drop, which differ from the good ones in nothing else: not in topic, not in language."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """Documents below are dropped as `learned_quality`. The score is the probability of being good where good and
    bad are equally frequent, so 0.5 calls each document what it is more like."""
    folds: int = Field(default=5, ge=2)
    """Parts that the examples are split into; each is scored by a classifier trained on the others."""


@dataclass(frozen=True)
class Model:
    """A trained classifier; it pickles, to some 2 MB."""

    idf: np.ndarray
    """Inverse document frequency of each column, float64."""
    classifier: Any
    """Fitted `CalibratedClassifierCV`."""
    scores: dict[str, tuple[float, float]]
    """Mean and standard error over the folds, by measure, each on examples that the classifier did not see:
    `roc_auc`; `average_precision`, of the good at the ratio of the examples; `balanced_accuracy`, at a score of 0.5;
    `brier`, the mean squared error of the probability, weighted so that both classes count alike (0.25 knows
    nothing). Folds share training examples, so the errors are somewhat too small."""


def train(good: Sequence[str], bad: Sequence[str], folds: int, seed: int) -> Model:
    """Train on `good` and `bad` texts, which count alike however many there are of each.

    Copies (up to case and white space) count once: a copy in two folds would be scored by having been seen.
    Raises: DataError if a class has fewer different texts than `folds`, or if the classes share a text.
    """
    from sklearn.model_selection import StratifiedKFold

    classes = [list(dict.fromkeys(filter(None, map(_plain, texts)))) for texts in (bad, good)]
    _check(*classes, folds)
    counts = feature_counts([*classes[0], *classes[1]])
    is_good = np.repeat([0, 1], [len(texts) for texts in classes])
    measured: dict[str, list[float]] = {}
    for seen, unseen in StratifiedKFold(folds, shuffle=True, random_state=seed).split(counts, is_good):
        idf, classifier = _fit(counts[seen], is_good[seen], seed)
        scores = classifier.predict_proba(_weighted(idf, counts[unseen]))[:, 1]
        for name, value in _measures(is_good[unseen], scores).items():
            measured.setdefault(name, []).append(value)
    return Model(*_fit(counts, is_good, seed), {name: mean_stderr(values) for name, values in measured.items()})


def score(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Probability of being good of each text where both kinds are equally frequent, float64, shape (len(texts),)."""
    parts = []
    for start in range(0, len(texts), _TEXTS_PER_BATCH):
        counts = feature_counts([_plain(text) for text in texts[start : start + _TEXTS_PER_BATCH]])
        parts.append(model.classifier.predict_proba(_weighted(model.idf, counts))[:, 1])
    return np.concatenate(parts) if parts else np.empty(0)


def feature_counts(texts: Sequence[str]) -> Any:
    """How often each hashed feature stands in each text: a float32 CSR matrix, (len(texts), 2 × _NUM_COLUMNS); the
    first half are words and pairs of words, the second character n-grams."""
    from scipy.sparse import csr_matrix

    lengths = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.uint32)
    # Per character at most one n-gram of each length; per word, which is at least one character and a space, two.
    most = int(lengths.sum()) * (CHARACTER_NGRAMS[1] - CHARACTER_NGRAMS[0] + 2) + 2 * len(texts)
    columns, values = np.empty(most, np.int32), np.empty(most, np.float32)
    ends = _compiled(_count)(codes, np.cumsum(lengths), *CHARACTER_NGRAMS, columns, values)
    size = ends[-1] if len(ends) else 0
    return csr_matrix(
        (values[:size], columns[:size], np.concatenate([[0], ends])), shape=(len(texts), 2 * _NUM_COLUMNS)
    )


def _plain(text: str) -> str:
    return " ".join(text[:MAX_CHARACTERS].lower().split())


def _check(bad: list[str], good: list[str], folds: int) -> None:
    for name, texts in (("good", good), ("bad", bad)):
        if len(texts) < folds:
            raise DataError(
                f"learned_quality: {len(texts)} different {name} examples, expected at least `folds` = {folds}; "
                "add examples (some hundreds make a useful score) or lower `folds`"
            )
    shared = set(good) & set(bad)
    if shared:
        example = min(shared)[:80]
        raise DataError(
            f"learned_quality: {len(shared)} texts are both good and bad examples, such as '{example}'; "
            "take them out of one of the two"
        )


def _fit(counts: Any, is_good: np.ndarray, seed: int) -> tuple[np.ndarray, Any]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    num_texts, num_columns = counts.shape
    # Smoothed, as if one more text held every feature.
    idf = 1 + np.log((1 + num_texts) / (1 + np.bincount(counts.indices, minlength=num_columns)))
    splits = StratifiedKFold(min(3, int(np.bincount(is_good).min())), shuffle=True, random_state=seed)
    logistic = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1_000)
    classifier = CalibratedClassifierCV(logistic, cv=splits, ensemble=False)
    # One thread: vectors of this size gain nothing from more, and their sums come out the same everywhere.
    with threadpool_limits(1):
        return idf, classifier.fit(_weighted(idf, counts), is_good, sample_weight=_balanced(is_good))


def _weighted(idf: np.ndarray, counts: Any) -> Any:
    """tf-idf of `counts` with 1 + log(count) as tf, words and characters each of unit length; float32 CSR."""
    weighted = counts.copy()
    _compiled(_weigh)(weighted.indptr, weighted.indices, weighted.data, idf)
    return weighted


def _balanced(is_good: np.ndarray) -> np.ndarray:
    return (len(is_good) / (2 * np.bincount(is_good)))[is_good]


def _measures(is_good: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    measures = {
        "roc_auc": metrics.roc_auc_score(is_good, scores),
        "average_precision": metrics.average_precision_score(is_good, scores),
        "balanced_accuracy": metrics.balanced_accuracy_score(is_good, scores >= 0.5),
        "brier": metrics.brier_score_loss(is_good, scores, sample_weight=_balanced(is_good)),
    }
    return {name: float(value) for name, value in measures.items()}


@cache
def _compiled(function: Callable[..., Any]) -> Any:
    # Here and not as a decorator: whoever imports the config must not pay for numba.
    from numba import njit

    return njit(cache=True, nogil=True)(function)


def _count(codes, text_ends, shortest, longest, columns, values):
    """Write the columns and counts of each text, one after the other, and return where each one ends; compiled.

    Words, pairs and n-grams are polynomial hashes modulo 2^64 (Karp and Rabin 1987), mixed to the bits of a column.
    """
    one, space = np.uint64(1), np.uint32(32)
    counts = np.zeros(2 * _NUM_COLUMNS, np.int32)
    longest_text = 0
    for index in range(len(text_ends)):
        longest_text = max(longest_text, text_ends[index] - (text_ends[index - 1] if index else 0))
    hashes = np.empty(longest_text * (longest - shortest + 2) + 2, np.uint64)
    ends = np.empty(len(text_ends), np.int64)
    start = end = 0
    for index in range(len(text_ends)):
        stop, num_found = text_ends[index], 0
        word = previous = np.uint64(0)
        for at in range(start, stop):
            if codes[at] != space:
                word = word * _FIRST + np.uint64(codes[at]) + one
            if codes[at] == space or at == stop - 1:
                hashes[num_found], hashes[num_found + 1] = word, previous * _SECOND + word + one
                word, previous = np.uint64(0), word
                num_found += 2
        num_words = num_found
        for at in range(start, stop):
            gram = np.uint64(0)
            for size in range(1, min(longest, stop - at) + 1):
                gram = gram * _FIRST + np.uint64(codes[at + size - 1]) + one
                if size >= shortest:
                    hashes[num_found] = gram
                    num_found += 1
        begin = end
        for place in range(num_found):
            mixed = ((hashes[place] ^ (hashes[place] >> _HALF)) * _SECOND) >> _TO_COLUMN
            column = np.int64(mixed) + (_NUM_COLUMNS if place >= num_words else 0)
            if not counts[column]:
                columns[end] = column
                end += 1
            counts[column] += 1
        for place in range(begin, end):
            values[place] = counts[columns[place]]
            counts[columns[place]] = 0
        start, ends[index] = stop, end
    return ends


def _weigh(row_ends, columns, values, idf):
    """Turn counts into weights in place; compiled."""
    for index in range(len(row_ends) - 1):
        words = characters = 0.0
        for place in range(row_ends[index], row_ends[index + 1]):
            weight = idf[columns[place]]
            if values[place] > 1:
                weight *= 1 + math.log(values[place])
            values[place] = weight
            if columns[place] < _NUM_COLUMNS:
                words += weight * weight
            else:
                characters += weight * weight
        words, characters = math.sqrt(words), math.sqrt(characters)
        for place in range(row_ends[index], row_ends[index + 1]):
            values[place] /= words if columns[place] < _NUM_COLUMNS else characters
