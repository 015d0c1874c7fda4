"""How well logits tell two classes apart: the paper's accuracy and average precision, and ROC AUC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score


@dataclass(frozen=True)
class Metrics:
    """All between 0 and 1; None where a class they need has no images, with ``reason`` saying which.

    ``accuracy`` counts a logit above the threshold as generated; on unequal class sizes the larger one dominates it.
    """

    real: int
    fake: int
    accuracy: float | None
    average_precision: float | None
    roc_auc: float | None
    accuracy_real: float | None
    accuracy_fake: float | None
    reason: str | None


def measure(labels: Sequence[int], logits: Sequence[float], threshold: float = 0.0) -> Metrics:
    """labels: 0 real, 1 generated; logits: finite, one for each label. Raises ValueError where they do not fit."""
    labels, logits = np.asarray(labels, int), np.asarray(logits, float)
    if labels.shape != logits.shape or not np.isin(labels, (0, 1)).all() or not np.isfinite(logits).all():
        raise ValueError("need one finite logit for each label, and labels of 0 and 1")
    verdicts = logits > threshold
    real, fake = int((labels == 0).sum()), int((labels == 1).sum())
    missing = [name for name, count in (("real", real), ("generated", fake)) if not count]
    return Metrics(
        real=real,
        fake=fake,
        accuracy=float(accuracy_score(labels, verdicts)) if real + fake else None,
        average_precision=None if missing else float(average_precision_score(labels, logits)),
        roc_auc=None if missing else float(roc_auc_score(labels, logits)),
        accuracy_real=float((~verdicts[labels == 0]).mean()) if real else None,
        accuracy_fake=float(verdicts[labels == 1].mean()) if fake else None,
        reason=f"no {' and no '.join(missing)} images" if missing else None,
    )


def mean(rows: Sequence[Metrics]) -> Metrics | None:
    """The unweighted mean over rows that have both classes, as the paper averages over generators; None of none."""
    rows = [row for row in rows if row.reason is None]
    if not rows:
        return None

    def average(name: str) -> float:
        return math.fsum(getattr(row, name) for row in rows) / len(rows)

    names = ("accuracy", "average_precision", "roc_auc", "accuracy_real", "accuracy_fake")
    return Metrics(
        real=sum(row.real for row in rows),
        fake=sum(row.fake for row in rows),
        reason=None,
        **{name: average(name) for name in names},
    )
