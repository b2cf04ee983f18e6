"""Can a classifier tell the current window from the reference by its text? If not, the text has not drifted.

Classifier two-sample test: Lopez-Paz and Oquab, 2017, "Revisiting classifier two-sample tests". The features
are character n-grams, which need no tokeniser and serve Korean and English alike.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from statistics import NormalDist

NGRAMS = (2, 4)
"""Character n-grams inside words: two characters are a Korean stem, four most English ones."""
FOLDS = 5
REGULARISATION = 0.1
"""Inverse strength. Measured on the quickstart log: between 0.03 and 0.3 the AUC of a drifted week is the
same, and at 1 it is lower, for the classifier then learns single questions by heart."""


def out_of_fold_scores(
    reference: Sequence[str], current: Sequence[str], seed: int
) -> tuple[float, list[float]]:
    """(AUC, score of each current text): how surely a classifier that has not seen a text calls it current.

    Texts without a common n-gram anywhere cannot be told apart: AUC 0.5.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = min(FOLDS, len(reference), len(current))
    texts = [unicodedata.normalize("NFC", text) for text in (*reference, *current)]
    is_current = np.array([0] * len(reference) + [1] * len(current))
    if folds < 2:
        return 0.5, [0.5] * len(current)
    try:
        features = TfidfVectorizer(
            analyzer="char_wb", ngram_range=NGRAMS, min_df=2, sublinear_tf=True
        ).fit_transform(texts)
    except ValueError:  # every n-gram occurs once, or there is no text at all
        return 0.5, [0.5] * len(current)
    scores = cross_val_predict(
        LogisticRegression(solver="liblinear", class_weight="balanced", C=REGULARISATION, random_state=seed),
        features,
        is_current,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )[:, 1]
    return float(roc_auc_score(is_current, scores)), [float(score) for score in scores[len(reference) :]]


def auc_threshold(n_reference: int, n_current: int, min_auc: float, false_alarm_rate: float) -> float:
    """AUC from which two windows differ: `min_auc`, or more where windows are so small that chance alone
    exceeds it.

    Under no drift the AUC is a Mann-Whitney statistic with standard error √((m + n + 1) / 12mn).
    """
    stderr = math.sqrt((n_reference + n_current + 1) / (12 * n_reference * n_current))
    return max(min_auc, 0.5 + NormalDist().inv_cdf(1 - false_alarm_rate) * stderr)
