"""Bootstrap intervals of accuracy, average precision and ROC AUC.

Each class is resampled separately, with its own number of images. All replicates are computed at once from how often
each image was drawn: a thousand of them take about as long as a hundred calls of scikit-learn.
"""

from __future__ import annotations

import zlib

import numpy as np

NAMES = ("accuracy", "average_precision", "roc_auc")
REPLICATES = 1000
CONFIDENCE = 0.95
_CHUNK = 2**17  # counts in memory at a time


def replicates(real: np.ndarray, fake: np.ndarray, threshold: float, count: int = REPLICATES) -> np.ndarray:
    """Return (len(NAMES), count) float64 bootstrap replicates of the metrics.

    Args:
        real, fake: Sorted float64 logits of the classes; neither is empty.
        threshold: Threshold of the accuracy.
        count: Number of replicates.

    The random seed comes from the logits. Generators with the same real images share the draws of them, so that the
    interval of a mean over such generators is right, too.
    """
    values, position = np.unique(np.concatenate([real, fake]), return_inverse=True)
    position = len(values) - 1 - position  # in falling order
    above = int((values > threshold).sum())
    random = [np.random.default_rng(zlib.crc32(logits.tobytes())) for logits in (real, fake)]
    sides = (len(real), len(fake))
    metrics = np.empty((len(NAMES), count))
    step = max(1, _CHUNK // len(position))
    for first in range(0, count, step):
        last = min(count, first + step)
        drawn = []
        for side, positions, draw in zip(sides, np.split(position, [len(real)]), random, strict=True):
            counts = draw.multinomial(side, np.full(side, 1 / side), size=last - first)
            at_value = np.zeros((last - first, len(values)))
            order = np.argsort(positions, kind="stable")
            starts = np.flatnonzero(np.diff(positions[order], prepend=-1))
            at_value[:, positions[order][starts]] = np.add.reduceat(counts[:, order], starts, axis=1)
            drawn.append(at_value)
        metrics[:, first:last] = _measures(drawn[0], drawn[1], above)
    return metrics


def _measures(real: np.ndarray, fake: np.ndarray, above: int) -> np.ndarray:
    """Compute the metrics from counts per class.

    ``real``, ``fake``: (replicates, distinct logits in falling order). ``above``: how many distinct logits exceed the
    threshold.
    """
    false_positives, true_positives = real.cumsum(1), fake.cumsum(1)
    reals, fakes = false_positives[:, -1], true_positives[:, -1]
    hits = true_positives[:, above - 1] if above else 0.0
    alarms = false_positives[:, above - 1] if above else 0.0
    accuracy = (hits + reals - alarms) / (reals + fakes)
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    average_precision = (fake * precision).sum(1) / fakes
    below = reals[:, None] - false_positives + real / 2  # ties count half
    roc_auc = (fake * below).sum(1) / (reals * fakes)
    return np.stack([accuracy, average_precision, roc_auc])


def intervals(replicated: np.ndarray, confidence: float = CONFIDENCE) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each metric, from (len(NAMES), count) replicates."""
    edges = np.quantile(replicated, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return {name: (float(low), float(high)) for name, low, high in zip(NAMES, *edges, strict=True)}
