"""Metrics against their definitions, counted out by hand or by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from npr_model.evaluation import metrics


def test_against_the_definitions():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    logits = (random.normal(size=60) + labels).astype(np.float32)
    measured = metrics.measure(labels, logits, threshold=0.3)
    fakes, reals = logits[labels == 1], logits[labels == 0]
    assert (measured.real, measured.fake) == (len(reals), len(fakes))
    assert measured.accuracy_fake == pytest.approx((fakes > 0.3).mean())
    assert measured.accuracy_real == pytest.approx((reals <= 0.3).mean())
    assert measured.accuracy == pytest.approx(((logits > 0.3) == labels).mean())
    assert measured.roc_auc == pytest.approx((fakes[:, None] > reals[None, :]).mean())
    precisions = [(fakes >= fake).sum() / (logits >= fake).sum() for fake in fakes]
    assert measured.average_precision == pytest.approx(np.mean(precisions))
    assert measured.reason is None


@pytest.mark.parametrize(("label", "reason"), [(0, "no generated images"), (1, "no real images")])
def test_one_class(label, reason):
    measured = metrics.measure([label] * 3, [-1.0, 1.0, 2.0])
    assert measured.average_precision is None and measured.roc_auc is None
    assert measured.reason == reason
    assert measured.accuracy == pytest.approx([1 / 3, 2 / 3][label])


def test_nothing():
    measured = metrics.measure([], [])
    assert measured.accuracy is None and measured.reason == "no real and no generated images"


@pytest.mark.parametrize(("labels", "logits"), [([0, 1], [0.0]), ([0, 2], [0.0, 1.0]), ([0, 1], [0.0, np.nan])])
def test_bad_arguments(labels, logits):
    with pytest.raises(ValueError, match="one finite logit for each label"):
        metrics.measure(labels, logits)


def test_mean_leaves_out_rows_of_one_class():
    rows = [metrics.measure([0, 1], [-1, 1]), metrics.measure([0, 1], [1, -1]), metrics.measure([1], [1])]
    assert metrics.mean(rows).accuracy == 0.5
    assert metrics.mean(rows[2:]) is None


def test_thresholds_by_brute_force():
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 90)
    logits = np.round(random.normal(size=90) + 1.2 * labels, 1)  # with ties
    measured = metrics.measure(labels, logits)
    accuracies = {t: ((logits > t) == labels).mean() for t in np.concatenate([[-99], logits])}
    assert measured.best_accuracy == pytest.approx(max(accuracies.values()))
    assert ((logits > measured.best_threshold) == labels).mean() == pytest.approx(measured.best_accuracy)
    reals, fakes = logits[labels == 0], logits[labels == 1]
    for point in measured.at_rates:
        assert (reals > point.threshold).mean() <= point.rate
        lower = logits[logits < point.threshold]
        assert not len(lower) or (reals > lower.max()).mean() > point.rate  # no lower threshold keeps the rate
        assert point.detected == pytest.approx((fakes > point.threshold).mean())
        assert point.accuracy == pytest.approx(((logits > point.threshold) == labels).mean())


def test_perfect_and_useless():
    perfect = metrics.measure([0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0], threshold=9)
    assert perfect.best_accuracy == 1 and perfect.accuracy == 0.5
    assert [point.detected for point in perfect.at_rates] == [1, 1]
    useless = metrics.measure([0, 1], [5.0, 5.0])
    assert useless.best_accuracy == 0.5 and [point.detected for point in useless.at_rates] == [0, 0]
