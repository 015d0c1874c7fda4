"""The bootstrap's replicates are what scikit-learn gives on resampled images."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from npr_model.evaluation import bootstrap

logits = st.lists(st.integers(-4, 4), min_size=1, max_size=12)  # few values: ties within and across the classes


@settings(deadline=None, max_examples=60)
@given(logits, logits, st.integers(-5, 5))
def test_equals_scikit_learn(real, fake, threshold):
    real, fake = np.sort(np.array(real, float)), np.sort(np.array(fake, float))
    replicates = bootstrap.replicates(real, fake, threshold, count=8)
    draws = []
    for side in (real, fake):
        random = np.random.default_rng(zlib.crc32(side.tobytes()))
        counts = random.multinomial(len(side), np.full(len(side), 1 / len(side)), size=8)
        draws.append([np.repeat(side, row) for row in counts])
    for number, (reals, fakes) in enumerate(zip(*draws, strict=True)):
        labels = np.repeat([0, 1], [len(reals), len(fakes)])
        scores = np.concatenate([reals, fakes])
        expected = [
            accuracy_score(labels, scores > threshold),
            average_precision_score(labels, scores),
            roc_auc_score(labels, scores),
        ]
        assert replicates[:, number] == pytest.approx(expected)


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    real, fake = np.sort(random.normal(size=300)), np.sort(random.normal(size=200) + 1)
    whole = bootstrap.replicates(real, fake, 0.0)
    monkeypatch.setattr(bootstrap, "_CHUNK", 5000)
    np.testing.assert_allclose(bootstrap.replicates(real, fake, 0.0), whole)


def test_interval_is_as_wide_as_theory_says():
    """The interval of an accuracy is two standard deviations of a binomial share to either side."""
    random = np.random.default_rng(0)
    real, fake = np.sort(random.normal(size=2000)), np.sort(random.normal(size=2000) + 1)
    low, high = bootstrap.intervals(bootstrap.replicates(real, fake, 0.5))["accuracy"]
    accuracy = ((real <= 0.5).mean() + (fake > 0.5).mean()) / 2
    deviation = np.sqrt(accuracy * (1 - accuracy) / 4000)
    assert low < accuracy < high
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_shared_real_images_share_their_draws():
    random = np.random.default_rng(0)
    real = np.sort(random.normal(size=50))
    one, other = (bootstrap.replicates(real, np.sort(random.normal(size=5000) + 1), 0.0)[2] for _ in range(2))
    assert np.corrcoef(one, other)[0, 1] > 0.9
