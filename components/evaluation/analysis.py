"""Measures of models that classify, predict numbers or rank, over scikit-learn, under the names that reports use.

Labels are strings; truths of a two-class problem are 0 or 1 with scores that are higher for 1; a ranking is a list of
relevances in the order in which the items were returned. Curves are lists of (x, y) points, which
`bloomery.pipelines.charts.lines` draws, as `charts.matrix` draws what `confusion` counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from bloomery.components.core.scoring.verify import VerifierConfig, extract, extract_reference, normalise

NO_LABEL = "(no label)"
"""Stands for an answer that is no label of a reference, and is never right."""
Numbers = Sequence[float] | np.ndarray


def label_pairs(rows: Sequence[dict[str, Any]], verifier: VerifierConfig) -> tuple[list[str], list[str]]:
    """(labels of the references, labels answered) of the eval_result rows of a label task."""
    truth = [normalise(extract_reference(verifier, row["reference"]), verifier.ignore_case) for row in rows]
    known = set(truth)
    answers = [normalise(extract(verifier, row["response"]) or "", verifier.ignore_case) for row in rows]
    return truth, [answer if answer in known else NO_LABEL for answer in answers]


def classification(truth: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Measures of a closed set of labels; `macro_` ones are means over the labels of the truth.

    Returns: accuracy, macro_precision, macro_recall (which is the balanced accuracy), macro_f1, macro_specificity,
             cohen_kappa, mcc, no_label_fraction.
    """
    from sklearn import metrics

    labels = sorted(set(truth))
    average = {"labels": labels, "average": "macro", "zero_division": 0.0}
    per_label = metrics.multilabel_confusion_matrix(truth, found, labels=labels)
    negatives = per_label[:, 0].sum(1)
    specificity = per_label[:, 0, 0] / np.maximum(negatives, 1)
    return {
        "accuracy": float(metrics.accuracy_score(truth, found)),
        "macro_precision": float(metrics.precision_score(truth, found, **average)),
        "macro_recall": float(metrics.recall_score(truth, found, **average)),
        "macro_f1": float(metrics.f1_score(truth, found, **average)),
        "macro_specificity": float(specificity[negatives > 0].mean()) if (negatives > 0).any() else 0.0,
        "cohen_kappa": float(metrics.cohen_kappa_score(truth, found)) if len({*truth, *found}) > 1 else 1.0,
        "mcc": float(metrics.matthews_corrcoef(truth, found)),
        "no_label_fraction": sum(label == NO_LABEL for label in found) / len(found),
    }


def confusion(
    truth: Sequence[str], found: Sequence[str], most: int = 16
) -> tuple[list[str], list[str], list[list[int]]]:
    """(labels of the rows: truth, of the columns: found, counts), of the `most` labels with the most errors.

    Errors towards a label that is not shown count in the column "(other)".
    """
    pairs = Counter(zip(truth, found, strict=True))
    errors = Counter(wanted for wanted, got in pairs.elements() if wanted != got)
    rows = sorted(sorted(set(truth), key=lambda label: (-errors[label], label))[:most])
    seen = {got if got in rows or got == NO_LABEL else "(other)" for wanted, got in pairs if wanted in rows}
    columns = [*rows, *(extra for extra in ("(other)", NO_LABEL) if extra in seen)]
    shown: Counter[tuple[str, str]] = Counter()
    for (wanted, got), count in pairs.items():
        shown[wanted, got if got in columns else "(other)"] += count
    return rows, columns, [[shown[row, column] for column in columns] for row in rows]


def two_class(truth: Numbers, scores: Numbers) -> dict[str, float]:
    """roc_auc, pr_auc (average precision, without interpolation) and brier_score of scores for class 1; the last only
    where they are probabilities.

    Raises: ValueError if only one class occurs.
    """
    from sklearn import metrics

    t, s = np.asarray(truth, int), np.asarray(scores, float)
    if len(set(t.tolist())) != 2:
        raise ValueError("ranking two classes needs examples of both")
    found = {"roc_auc": float(metrics.roc_auc_score(t, s)), "pr_auc": float(metrics.average_precision_score(t, s))}
    if s.min() >= 0 and s.max() <= 1:
        found["brier_score"] = float(metrics.brier_score_loss(t, s))
    return found


def roc_curve(truth: Numbers, scores: Numbers) -> list[tuple[float, float]]:
    """(false-positive rate, true-positive rate) at every threshold, from (0, 0) to (1, 1)."""
    from sklearn import metrics

    x, y, _ = metrics.roc_curve(truth, scores)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def pr_curve(truth: Numbers, scores: Numbers) -> list[tuple[float, float]]:
    """(recall, precision) at every threshold, by growing recall."""
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    return list(zip(recall[::-1].tolist(), precision[::-1].tolist(), strict=True))


def cheapest_threshold(
    truth: Numbers, scores: Numbers, *, false_positive_cost: float, false_negative_cost: float
) -> tuple[float, float]:
    """(threshold, mean cost): calling scores at or above the threshold class 1 costs least on these examples.

    Of thresholds that cost the same the highest, which is infinite where calling nothing 1 is cheapest. With calibrated
    probabilities it lies near false_positive_cost / (false_positive_cost + false_negative_cost) (Elkan, The Foundations
    of Cost-Sensitive Learning, IJCAI 2001, equation 2).
    """
    t, s = np.asarray(truth, int), np.asarray(scores, float)
    thresholds = np.r_[np.inf, np.unique(s)[::-1]]
    called = s[None, :] >= thresholds[:, None]
    costs = (called & (t == 0)).mean(1) * false_positive_cost + (~called & (t == 1)).mean(1) * false_negative_cost
    best = int(costs.argmin())
    return float(thresholds[best]), float(costs[best])


def regression(truth: Numbers, found: Numbers, huber_delta: float = 1.0) -> dict[str, float]:
    """mse, rmse, mae, r2, huber (its loss is linear beyond `huber_delta`; Huber, 1964), mape and smape.

    mape and smape are shares of one. smape is |t - f| / ((|t| + |f|) / 2), in [0, 2]; two zeros count as no error. mape
    is left out where a truth is 0, as it has no value there.
    """
    from sklearn import metrics

    t, f = np.asarray(truth, float), np.asarray(found, float)
    error = np.abs(t - f)
    linear = huber_delta * (error - huber_delta / 2)
    scale = (np.abs(t) + np.abs(f)) / 2
    mse = float(metrics.mean_squared_error(t, f))
    measured = {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(metrics.mean_absolute_error(t, f)),
        "r2": float(metrics.r2_score(t, f)),
        "huber": float(np.where(error <= huber_delta, error**2 / 2, linear).mean()),
        "smape": float(np.divide(error, scale, out=np.zeros_like(error), where=scale > 0).mean()),
    }
    return measured if (t == 0).any() else {**measured, "mape": float((error / np.abs(t)).mean())}


def ranking(relevances: Sequence[Sequence[float]], k: int) -> dict[str, float]:
    """ndcg, recall at `k`, map and mrr, means over queries; each holds all its items in the order returned.

    NDCG takes the relevances as gains (Järvelin and Kekäläinen, 2002); the others count one above 0 as relevant.
    A query with nothing relevant scores 0.
    """
    rows = []
    for given in relevances:
        gains = np.asarray(given, float)
        discounts = 1 / np.log2(np.arange(2, 2 + min(k, gains.size)))
        ideal = float((np.sort(gains)[::-1][:k] * discounts).sum())
        places = np.flatnonzero(gains > 0) + 1
        if not places.size:
            rows.append((0.0, 0.0, 0.0, 0.0))
            continue
        precisions = np.arange(1, places.size + 1) / places
        ndcg = float((gains[:k] * discounts).sum()) / ideal
        rows.append((ndcg, float((places <= k).mean()), float(precisions.mean()), 1 / float(places[0])))
    means = np.asarray(rows).mean(0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map", "mrr"), means, strict=True))


def folds(
    num_rows: int,
    k: int,
    *,
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    times: Sequence[Any] | None = None,
    seed: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) row indices of `k` folds: plain; with `labels`, each as frequent in every fold; with `groups`, a
    group never on both sides; with both; with `times`, training on what came before what is tested, in `k` steps.

    Raises: ValueError if `times` are given with others, or there are fewer rows, groups or members of a label than
            folds.
    """
    from sklearn import model_selection

    rows = np.arange(num_rows)
    if times is not None:
        if labels is not None or groups is not None:
            raise ValueError("folds in time keep the order alone; leave out labels and groups")
        order = np.argsort(np.asarray(times), kind="stable")
        for train, test in model_selection.TimeSeriesSplit(k).split(rows):
            yield order[train], order[test]
        return
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): model_selection.KFold,
        (True, False): model_selection.StratifiedKFold,
        (False, True): model_selection.GroupKFold,
        (True, True): model_selection.StratifiedGroupKFold,
    }
    splitter = kinds[labels is not None, groups is not None](k, shuffle=True, random_state=seed)
    yield from splitter.split(rows, labels, groups)


def bias_variance(
    fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]],
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    loss: Literal["squared", "zero_one"],
    rounds: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """The expected loss of a method, loss = bias + variance, over training sets drawn by bootstrap.

    `fit(x, y)` returns what predicts. Each test row's main prediction is the mean of its predictions (squared) or the
    most frequent one (zero-one); bias is the loss of the main prediction and variance what their scatter adds
    (Domingos, A Unified Bias-Variance Decomposition, ICML 2000). For zero-one loss that is `variance_unbiased` (scatter
    that spoils right main predictions) less `variance_biased` (scatter that mends wrong ones), so it may be negative.
    The noise of the labels cannot be told apart and counts as bias.
    """
    chance = np.random.default_rng(seed)
    predictions_RN = np.stack(
        [fit(x[rows], y[rows])(x_test) for rows in (chance.integers(0, len(x), len(x)) for _ in range(rounds))]
    )
    if loss == "squared":
        main_N = predictions_RN.mean(0)
        bias, variance = ((main_N - y_test) ** 2).mean(), ((predictions_RN - main_N) ** 2).mean()
        return {"loss": float(bias + variance), "bias": float(bias), "variance": float(variance)}
    main_N = np.asarray([Counter(column).most_common(1)[0][0] for column in predictions_RN.T.tolist()])
    right_N, wrong_RN = main_N == y_test, predictions_RN != y_test
    spoilt, mended = (wrong_RN & right_N).mean(), (~wrong_RN & ~right_N).mean()
    return {
        "loss": float(wrong_RN.mean()),
        "bias": float((~right_N).mean()),
        "variance": float(spoilt - mended),
        "variance_unbiased": float(spoilt),
        "variance_biased": float(mended),
    }
