"""How well logits separate two classes: accuracy and average precision as in the paper, ROC AUC, thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

RATES = (0.05, 0.01)  # false-positive rates at which detected generated images are counted


@dataclass(frozen=True)
class AtRate:
    """Metrics at the threshold that at most a share ``rate`` of the real images exceed.

    ``accuracy``: on both classes. ``detected``: share of generated images above the threshold. ``threshold`` is None
    for a mean over generators.
    """

    rate: float
    threshold: float | None
    accuracy: float
    detected: float


@dataclass(frozen=True)
class Metrics:
    """Metrics between 0 and 1; None if a class that they need has no images, see ``reason``.

    Attributes:
        real, fake: Numbers of images.
        accuracy: With logits above the threshold counted as generated. With unequal classes, the larger one dominates.
        average_precision, roc_auc: Independent of the threshold.
        accuracy_real, accuracy_fake: Accuracy on one class.
        reason: Which class is missing; None if both are there.
        best_accuracy, best_threshold: Of the threshold that is best on these images; optimistic.
        at_rates: Metrics at fixed false-positive rates.
        intervals: Bootstrap intervals (low, high), by the name of the field.
    """

    real: int
    fake: int
    accuracy: float | None
    average_precision: float | None
    roc_auc: float | None
    accuracy_real: float | None
    accuracy_fake: float | None
    reason: str | None
    best_accuracy: float | None = None
    best_threshold: float | None = None
    at_rates: tuple[AtRate, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metrics:
        """Return the metrics whose ``dataclasses.asdict`` is ``values``, which JSON may have stored. Raises TypeError
        or KeyError if it is not one.
        """
        at_rates = tuple(AtRate(**rate) for rate in values["at_rates"])
        intervals = {name: (low, high) for name, (low, high) in values["intervals"].items()}
        return cls(**dict(values) | {"at_rates": at_rates, "intervals": intervals})


def measure(labels: ArrayLike, logits: ArrayLike, threshold: float = 0.0) -> Metrics:
    """Compute the metrics.

    Args:
        labels: 0 for real, 1 for generated.
        logits: One finite logit per label.
        threshold: Larger logits count as generated.

    Raises:
        ValueError: Labels and logits do not fit.
    """
    labels, logits = np.asarray(labels, int), np.asarray(logits, float)
    if labels.shape != logits.shape or not np.isin(labels, (0, 1)).all() or not np.isfinite(logits).all():
        raise ValueError("need one finite logit for each label, and labels of 0 and 1")
    verdicts = logits > threshold
    real, fake = int((labels == 0).sum()), int((labels == 1).sum())
    missing = [name for name, count in (("real", real), ("generated", fake)) if not count]
    best_accuracy, best_threshold = (None, None) if missing else _best(labels, logits)
    return Metrics(
        real=real,
        fake=fake,
        accuracy=float(accuracy_score(labels, verdicts)) if real + fake else None,
        average_precision=None if missing else float(average_precision_score(labels, logits)),
        roc_auc=None if missing else float(roc_auc_score(labels, logits)),
        accuracy_real=float((~verdicts[labels == 0]).mean()) if real else None,
        accuracy_fake=float(verdicts[labels == 1].mean()) if fake else None,
        reason=f"no {' and no '.join(missing)} images" if missing else None,
        best_accuracy=best_accuracy,
        best_threshold=best_threshold,
        at_rates=() if missing else tuple(_at_rate(labels, logits, rate) for rate in RATES),
    )


def mean(rows: Sequence[Metrics]) -> Metrics | None:
    """Return the unweighted mean over rows that have both classes, as in the paper; None if there are none.

    Thresholds and intervals are left out: they cannot be averaged.
    """
    rows = [row for row in rows if row.reason is None]
    if not rows:
        return None

    def average(name: str) -> float:
        return math.fsum(getattr(row, name) for row in rows) / len(rows)

    names = ("accuracy", "average_precision", "roc_auc", "accuracy_real", "accuracy_fake", "best_accuracy")
    averages: dict[str, Any] = {name: average(name) for name in names}
    at_rates = []
    for points in zip(*(row.at_rates for row in rows), strict=True):
        accuracy, detected = (
            math.fsum(getattr(point, name) for point in points) / len(rows) for name in ("accuracy", "detected")
        )
        at_rates.append(AtRate(points[0].rate, None, accuracy, detected))
    return Metrics(
        real=sum(row.real for row in rows),
        fake=sum(row.fake for row in rows),
        reason=None,
        at_rates=tuple(at_rates),
        **averages,
    )


def mean_auc(families: ArrayLike, labels: ArrayLike, logits: ArrayLike, least: int = 1) -> float:
    """Return the mean ROC AUC of the families of generators, each against all real images.

    Args:
        families: Name of the family of each image.
        labels: 0 for real, 1 for generated.
        logits: One logit per label.
        least: Families with fewer generated images do not count.
    """
    families, labels, logits = np.asarray(families), np.asarray(labels), np.asarray(logits, float)
    names, counts = np.unique(families[labels == 1], return_counts=True)
    chosen = [(labels == 0) | (families == name) for name in names[counts >= least]]
    return float(np.mean([roc_auc_score(labels[rows], logits[rows]) for rows in chosen]))


def _best(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Return the highest accuracy of any threshold, and the lowest such threshold."""
    thresholds = np.unique(logits)
    thresholds = np.concatenate([[np.nextafter(thresholds[0], -np.inf)], thresholds])
    fakes, reals = (np.sort(logits[labels == label]) for label in (1, 0))
    right = len(fakes) - np.searchsorted(fakes, thresholds, "right") + np.searchsorted(reals, thresholds, "right")
    return float(right.max() / len(labels)), float(thresholds[right.argmax()])


def _at_rate(labels: np.ndarray, logits: np.ndarray, rate: float) -> AtRate:
    reals = np.sort(logits[labels == 0])[::-1]
    threshold = reals[min(len(reals) - 1, math.floor(rate * len(reals)))]
    verdicts = logits > threshold
    return AtRate(rate, float(threshold), float((verdicts == labels).mean()), float(verdicts[labels == 1].mean()))
