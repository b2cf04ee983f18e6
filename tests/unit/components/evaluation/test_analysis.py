"""Measures against values worked out by hand."""

import math

import numpy as np
import pytest

from bloomery.components.core.scoring.verify import VerifierConfig
from bloomery.components.evaluation import analysis


def test_classification():
    # a: 2 of 3 found, b: 1 of 1; said a twice (both right), b once (right), nothing once
    truth, found = ["a", "a", "a", "b"], ["a", "a", analysis.NO_LABEL, "b"]
    measured = analysis.classification(truth, found)
    assert measured["accuracy"] == 0.75 and measured["no_label_fraction"] == 0.25
    assert measured["macro_precision"] == 1.0 and measured["macro_recall"] == pytest.approx(5 / 6)
    assert measured["macro_f1"] == pytest.approx((0.8 + 1) / 2) and measured["macro_specificity"] == 1.0
    # agreement .75; by chance 3/4·2/4 + 1/4·1/4 = 7/16: kappa (12 - 7) / (16 - 7)
    assert measured["cohen_kappa"] == pytest.approx(5 / 9)
    wrong = analysis.classification(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert wrong["macro_specificity"] == pytest.approx((1 + 0.5) / 2)
    assert wrong["mcc"] == pytest.approx(1 / math.sqrt(3))


def test_confusion_shows_the_labels_with_most_errors():
    truth = ["a", "a", "b", "b", "c", "c"]
    found = ["b", "b", "c", analysis.NO_LABEL, "c", "c"]
    assert analysis.confusion(truth, found) == (
        ["a", "b", "c"],
        ["a", "b", "c", analysis.NO_LABEL],
        [[0, 2, 0, 0], [0, 0, 1, 1], [0, 0, 2, 0]],
    )
    rows, columns, counts = analysis.confusion(truth, found, most=2)
    assert columns == ["a", "b", "(other)", analysis.NO_LABEL] and counts == [[0, 2, 0, 0], [0, 0, 1, 1]]


def test_two_classes():
    truth, scores = [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]
    # 3 of 4 pairs in order; precisions at the two hits: 1 and 2/3
    measured = analysis.two_class(truth, scores)
    assert measured["roc_auc"] == 0.75 and measured["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert measured["brier_score"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)
    assert analysis.roc_curve(truth, scores) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert analysis.pr_curve(truth, scores)[:2] == [(0.0, 1.0), (0.5, 1.0)]
    with pytest.raises(ValueError, match="both"):
        analysis.two_class([1, 1], [0.1, 0.2])


def test_cheapest_threshold():
    truth, scores = [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]
    cheap_alarms = analysis.cheapest_threshold(truth, scores, false_positive_cost=1, false_negative_cost=5)
    assert cheap_alarms == (0.7, 0.25)  # one false alarm of four
    dear_alarms = analysis.cheapest_threshold(truth, scores, false_positive_cost=5, false_negative_cost=1)
    assert dear_alarms == (0.9, 0.25)  # one miss of four
    never = analysis.cheapest_threshold([0, 0], [0.9, 0.8], false_positive_cost=1, false_negative_cost=1)
    assert never == (math.inf, 0.0)


def test_regression():
    measured = analysis.regression([1, 2, 4], [1, 3, 1])
    assert measured["mse"] == pytest.approx(10 / 3) and measured["rmse"] == pytest.approx(math.sqrt(10 / 3))
    assert measured["mae"] == pytest.approx(4 / 3) and measured["mape"] == pytest.approx((0.5 + 0.75) / 3)
    assert measured["smape"] == pytest.approx((1 / 2.5 + 3 / 2.5) / 3)
    assert measured["huber"] == pytest.approx((0.5 + 2.5) / 3)  # 1·(3 - 1/2) beyond delta
    assert measured["r2"] == pytest.approx(1 - 10 / (14 / 3))
    with_zero = analysis.regression([0, 1], [0, 1])
    assert with_zero["smape"] == 0 and "mape" not in with_zero


def test_ranking():
    measured = analysis.ranking([[0, 1, 0, 1], [2, 0, 1, 0], [0, 0, 0, 0]], k=2)
    first, second = 1 / math.log2(3) / (1 + 1 / math.log2(3)), 2 / (2 + 1 / math.log2(3))
    assert measured["ndcg@2"] == pytest.approx((first + second) / 3)
    assert measured["recall@2"] == pytest.approx((0.5 + 0.5) / 3)
    assert measured["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + (1 + 2 / 3) / 2) / 3)
    assert measured["mrr"] == pytest.approx((1 / 2 + 1) / 3)


def test_ndcg_is_that_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    gains = np.random.default_rng(0).integers(0, 4, 20)
    order = -np.arange(20.0)
    assert analysis.ranking([gains], k=7)["ndcg@7"] == pytest.approx(ndcg_score([gains], [order], k=7))


def test_folds_keep_what_they_promise():
    labels = ["x"] * 6 + ["y"] * 3
    tested = []
    for train, test in analysis.folds(9, 3, labels=labels):
        assert sorted([*train, *test]) == list(range(9)) and sum(labels[i] == "y" for i in test) == 1
        tested += test.tolist()
    assert sorted(tested) == list(range(9))
    groups = [i // 3 for i in range(9)]
    for train, test in analysis.folds(9, 3, groups=groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}
    times = [5, 1, 4, 2, 3, 0]
    for train, test in analysis.folds(6, 2, times=times):
        assert max(times[i] for i in train) < min(times[i] for i in test)
    with pytest.raises(ValueError, match="order"):
        next(analysis.folds(4, 2, times=[1, 2, 3, 4], labels=[0, 1, 0, 1]))


def test_bias_and_variance_add_up_to_the_loss():
    rng = np.random.default_rng(0)
    x, x_test = rng.uniform(-1, 1, 60), np.linspace(-1, 1, 20)
    y, y_test = x**2 + 0.3 * rng.normal(size=60), x_test**2

    def polynomial(degree):
        return lambda a, b: np.polynomial.Polynomial.fit(a, b, degree)

    stiff, supple = (
        analysis.bias_variance(polynomial(d), x, y, x_test, y_test, loss="squared", rounds=50) for d in (0, 7)
    )
    assert stiff["bias"] > 3 * supple["bias"] and supple["variance"] > 3 * stiff["variance"]
    assert supple["loss"] == pytest.approx(supple["bias"] + supple["variance"])


def test_variance_may_mend_a_wrong_majority():
    # By turns, the learner says 0, 0, 1 to everything: the main prediction is 0, a third of the rounds say 1.
    turns = iter([0, 0, 1] * 2)

    def learner(a, b):
        said = next(turns)
        return lambda rows: np.full(len(rows), said)

    x = np.zeros((4, 1))
    found = analysis.bias_variance(learner, x, x, np.zeros((2, 1)), np.array([0, 1]), loss="zero_one", rounds=6)
    # truth 0: right but for a third; truth 1: wrong but for a third
    assert found["bias"] == 0.5 and found["variance_unbiased"] == pytest.approx(1 / 6)
    assert found["variance_biased"] == pytest.approx(1 / 6) and found["loss"] == pytest.approx(0.5)
    assert found["loss"] == pytest.approx(found["bias"] + found["variance"])


def test_labels_are_taken_out_of_references_as_out_of_responses():
    verifier = VerifierConfig(kind="label", extract=r"label: (\w+)")
    rows = [
        {"reference": "Card lost. label: card", "response": "label: card"},
        {"reference": "fee", "response": "label: card"},
        {"reference": "label: fee", "response": "fee"},
    ]
    assert analysis.label_pairs(rows, verifier) == (["card", "fee", "fee"], ["card", "card", analysis.NO_LABEL])
