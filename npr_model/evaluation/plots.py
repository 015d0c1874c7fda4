"""Figures of an evaluation: ROC curves and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_curve

from npr_model.evaluation.evaluate import Evaluation, Scores
from npr_model.evaluation.protocols import PROTOCOLS
from npr_model.evaluation.tables import Report
from npr_model.reporting.figures import new_figure, require_matplotlib, save
from npr_model.reporting.tables import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10  # of a reliability diagram, of equal width


def plot_evaluation(report: Report, folder: Path) -> list[Path]:
    """Write roc.png and reliability.png, with the name of the set in front if there are several; return the paths."""
    require_matplotlib()
    paths = []
    for evaluation in report.evaluations:
        prefix = f"{evaluation.protocol}-" if len(report.evaluations) > 1 else ""
        for name, plot in (("roc", roc), ("reliability", reliability)):
            paths.append(save(plot(evaluation), folder / f"{prefix}{name}.png"))
    return paths


def roc(evaluation: Evaluation) -> Figure:
    """Draw a ROC curve per generator. The false-positive axis is logarithmic, as the low rates matter."""
    figure, axes = new_figure()
    lowest = 1.0
    for name, scores in _complete(evaluation).items():
        false_positives, true_positives, _ = roc_curve(scores.labels, scores.logits, drop_intermediate=False)
        lowest = min(lowest, 1 / len(scores.real))
        area = percent(evaluation.generators[name].roc_auc)
        axes.plot(np.maximum(false_positives, 1e-9), true_positives, label=f"{name} ({area})", drawstyle="steps-post")
    chance = np.geomspace(lowest / 2, 1, 200)
    axes.plot(chance, chance, color="0.6", linestyle=":", label="chance (50.0)")
    axes.set(xscale="log", xlim=(lowest / 2, 1), ylim=(0, 1.01))
    axes.set(xlabel="false positives, share of real images", ylabel="generated images detected, share")
    axes.set_title(f"ROC, {_title(evaluation)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(title="generator (ROC AUC, %)", fontsize=8, title_fontsize=8, loc="upper left")
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Draw how often images of a given probability are generated; on the diagonal the probabilities are calibrated.

    Both classes have equal weight in total, as the probability assumes.
    """
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
    for name, scores in _complete(evaluation).items():
        probability, share = reliability_curve(scores, evaluation.temperature)
        axes.plot(probability, share, marker="o", markersize=3, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="probability that the detector gives", ylabel="share of generated images, classes weighted equally")
    axes.set_title(f"Reliability, {_title(evaluation)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def reliability_curve(scores: Scores, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probability and the weighted share of generated images, for each non-empty bin."""
    weights = np.concatenate([np.full(len(side), 1 / len(side)) for side in (scores.real, scores.fake)])
    probabilities = 1 / (1 + np.exp(-scores.logits / temperature))
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    mass, probability, generated = (
        np.bincount(bins, weights * values, BINS) for values in (1.0, probabilities, scores.labels)
    )
    kept = mass > 0
    return probability[kept] / mass[kept], generated[kept] / mass[kept]


def _complete(evaluation: Evaluation) -> Mapping[str, Scores]:
    return {name: scores for name, scores in evaluation.scores.items() if len(scores.real) and len(scores.fake)}


def _title(evaluation: Evaluation) -> str:
    title = f"{PROTOCOLS[evaluation.protocol].title}, " if evaluation.protocol else ""
    return f"{title}{evaluation.model}, view {evaluation.view}"
