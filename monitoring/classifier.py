"""Can a classifier tell the current window from the reference? If not, nothing has drifted that it can see.

Classifier two-sample test: Lopez-Paz and Oquab, 2017, "Revisiting classifier two-sample tests". Texts are compared by
character n-grams, which need no tokeniser and serve Korean and English alike; embeddings by their principal
components.

The statistic is the share of current rows among the tenth of all rows that look newest, not the AUC: drift of
traffic is mostly something new beside much that is as before, which shows at the top of the ranking and is diluted in
its average. Measured on real bank questions (1,000 rows a side): where a fifth of the traffic turned to intents that
were not there before, the statistic stood 5.7 standard deviations above those of no change, the AUC 3.4.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

NGRAMS = (2, 4)
"""Character n-grams inside words: two characters are a Korean stem, four most English ones. Words beside them, or
five characters, were no better on bank questions and the quickstart's log."""
COMPONENTS = 50
"""Principal components of the embeddings: more than a window's rows can tell apart are noise to a linear model."""
FOLDS = 5
REGULARISATION = 1.0
"""Inverse strength. Between 0.1 and 1 a shift of a fifth of the traffic is found alike; at 3 less."""
TOP = 0.1
"""Share of the rows that count as looking newest."""
OVERDISPERSION = 1.3
"""Out-of-fold scores of rows that are alike scatter more than a draw without replacement would: 1.0 to 1.5 times,
by the corpus, on three (1,000 and 400 rows a side, 10 to 24 pairs each)."""


class Comparison(NamedTuple):
    """How a classifier told two windows apart."""

    top_share: float
    """Share of current rows among the tenth of all rows with the highest scores; see `top_threshold`."""
    effect: float
    """Largest difference of the cumulative shares of the scores (one-sided Kolmogorov-Smirnov distance), in [0, 1]:
    at least so much of the window is unlike the reference."""
    reference: list[float]
    """Score of each reference row by a classifier that has not seen it: how surely it is called current."""
    current: list[float]
    """Score of each current row, likewise."""
    others: list[float]
    """Score of each further row by a classifier of all the rows."""


def compare_texts(
    reference: Sequence[str], current: Sequence[str], seed: int, others: Sequence[str] = ()
) -> Comparison:
    """Compare by character n-grams; `others` are scored, and not compared.

    Texts without a common n-gram anywhere cannot be told apart: every score is 0.5.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, min_df=2, sublinear_tf=True)
    try:
        features = vectorizer.fit_transform(map(_nfc, (*reference, *current)))
    except ValueError:  # every n-gram occurs once, or there is no text at all
        return _alike(len(reference), len(current), len(others))
    return _compare(features, len(reference), seed, vectorizer.transform(map(_nfc, others)) if others else None)


def compare_vectors(reference: Any, current: Any, seed: int) -> Comparison:
    """Compare embeddings: arrays of shape [rows, dimensions]."""
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    vectors = StandardScaler().fit_transform(np.concatenate([reference, current]))
    features = PCA(min(COMPONENTS, *vectors.shape), random_state=seed, whiten=True).fit_transform(vectors)
    return _compare(features, len(reference), seed)


def top_threshold(n_reference: int, n_current: int, false_alarm_rate: float) -> float:
    """`top_share` that windows which are alike exceed with that chance.

    The rows at the top are then a draw without replacement, whose variance is the hypergeometric's.
    """
    total, drawn = n_reference + n_current, _num_top(n_reference + n_current)
    share = n_current / total
    stderr = math.sqrt(share * (1 - share) / drawn * (total - drawn) / (total - 1))
    return share + NormalDist().inv_cdf(1 - false_alarm_rate) * OVERDISPERSION * stderr


def distance(reference: Sequence[float], current: Sequence[float], *, one_sided: bool = False) -> float:
    """Kolmogorov-Smirnov distance of two samples, in [0, 1]; one-sided: of `current` lying above."""
    import numpy as np

    points = np.unique(np.concatenate([reference, current]))
    below = [np.searchsorted(np.sort(side), points, side="right") / len(side) for side in (reference, current)]
    gaps = below[0] - below[1]
    return max(0.0, float(gaps.max() if one_sided else np.abs(gaps).max()))


def _compare(features: Any, n_reference: int, seed: int, others: Any = None) -> Comparison:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    is_current = np.array([0] * n_reference + [1] * (features.shape[0] - n_reference))
    folds = min(FOLDS, n_reference, len(is_current) - n_reference)
    if folds < 2:
        return _alike(n_reference, len(is_current) - n_reference, 0 if others is None else others.shape[0])
    model = LogisticRegression(solver="liblinear", class_weight="balanced", C=REGULARISATION, random_state=seed)
    scores = cross_val_predict(
        model,
        features,
        is_current,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )[:, 1]
    old, new = scores[:n_reference].tolist(), scores[n_reference:].tolist()
    # Rows of equal scores must not rank by their side: a column of constants would look like drift.
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    further = model.fit(features, is_current).predict_proba(others)[:, 1].tolist() if others is not None else []
    top_share = float(is_current[order[: _num_top(len(scores))]].mean())
    return Comparison(top_share, distance(old, new, one_sided=True), old, new, further)


def _num_top(num_rows: int) -> int:
    return max(1, round(TOP * num_rows))


def _alike(n_reference: int, n_current: int, n_others: int) -> Comparison:
    share = n_current / (n_reference + n_current)
    return Comparison(share, 0.0, [0.5] * n_reference, [0.5] * n_current, [0.5] * n_others)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
