"""Figures as PNG files: ROC curves, reliability diagrams, and curves over perturbations."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_curve

from npr_model.errors import InputError, reason
from npr_model.evaluate import Evaluation, Scores
from npr_model.files import replacing
from npr_model.protocols import PROTOCOLS
from npr_model.report import Report, percent
from npr_model.robustness import UNCHANGED, Point, axis_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10  # of a reliability diagram, of equal width
DOTS_PER_INCH = 150


def require_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'npr-kernels[plots]'")


def plot_evaluation(report: Report, folder: Path) -> list[Path]:
    """roc.png and reliability.png for every set (after its name, where there are several); the paths."""
    require_matplotlib()
    paths = []
    for evaluation in report.evaluations:
        prefix = f"{evaluation.protocol}-" if len(report.evaluations) > 1 else ""
        for name, plot in (("roc", roc), ("reliability", reliability)):
            paths.append(save(plot(evaluation), folder / f"{prefix}{name}.png"))
    return paths


def roc(evaluation: Evaluation) -> Figure:
    """A curve for every generator; false positives on a logarithmic axis, as few are what matters."""
    figure, axes = new_figure()
    lowest = 1.0
    for name, found in _complete(evaluation).items():
        false_positives, true_positives, _ = roc_curve(found.labels, found.logits, drop_intermediate=False)
        lowest = min(lowest, 1 / len(found.real))
        area = percent(evaluation.generators[name].roc_auc)
        axes.plot(np.maximum(false_positives, 1e-9), true_positives, label=f"{name} ({area})", drawstyle="steps-post")
    chance = np.geomspace(lowest / 2, 1, 200)
    axes.plot(chance, chance, color="0.6", linestyle=":", label="chance (50.0)")
    axes.set(xscale="log", xlim=(lowest / 2, 1), ylim=(0, 1.01))
    axes.set(xlabel="false positives, share of real images", ylabel="generated images found, share")
    axes.set_title(f"ROC, {_title(evaluation)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(title="generator (ROC AUC, %)", fontsize=8, title_fontsize=8, loc="upper left")
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """How often an image of a given probability was generated: on the diagonal the probabilities mean what they say.

    Real and generated images count equally in total, as the probability assumes, whatever their numbers.
    """
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
    for name, found in _complete(evaluation).items():
        probability, share = reliability_curve(found, evaluation.temperature)
        axes.plot(probability, share, marker="o", markersize=3, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="probability that the detector gives", ylabel="share of generated images, classes weighted equally")
    axes.set_title(f"Reliability, {_title(evaluation)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def plot_robustness(points: Sequence[Point], families: Mapping[str, Sequence[str]], folder: Path) -> list[Path]:
    """A PNG for every family of perturbations: ROC AUC of each generator along its axis; the paths."""
    by_text = {point.perturbation: point for point in points}
    paths = []
    for family, texts in families.items():
        values = axis_values(texts)
        figure, axes = new_figure()
        places = values if values is not None else list(range(len(texts)))
        unchanged = by_text[UNCHANGED]
        for number, name in enumerate(unchanged.generators):
            if unchanged.generators[name].roc_auc is None:
                continue
            areas = [by_text[text].generators[name].roc_auc or math.nan for text in texts]
            marker = {"marker": "o", "markersize": 3, "linestyle": "-" if values else ""}
            axes.plot(places, [100 * area for area in areas], label=name, color=f"C{number}", **marker)
            axes.axhline(100 * unchanged.generators[name].roc_auc, color=f"C{number}", linewidth=0.8, linestyle=":")
        if values is None:
            axes.set_xticks(places, texts, rotation=20, ha="right", fontsize=8)
        elif values[0] > values[-1]:
            axes.invert_xaxis()  # qualities fall, so that damage grows to the right
        axes.set(xlabel=family, ylabel="ROC AUC (%)")
        axes.set_title("Robustness; dotted: files as they are", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        name = "-".join("".join(c if c.isalnum() else " " for c in family.lower()).split())
        paths.append(save(figure, folder / f"{name}.png"))
    return paths


def reliability_curve(found: Scores, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Of the bins with images: their mean sigmoid(logit / temperature), and the share of generated ones, weighted."""
    weights = np.concatenate([np.full(len(side), 1 / len(side)) for side in (found.real, found.fake)])
    probabilities = 1 / (1 + np.exp(-found.logits / temperature))
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    mass, probability, generated = (
        np.bincount(bins, weights * values, BINS) for values in (1.0, probabilities, found.labels)
    )
    kept = mass > 0
    return probability[kept] / mass[kept], generated[kept] / mass[kept]


def new_figure(width: float = 6.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """A figure of one plot, in inches, apart from pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Figure, path: Path) -> Path:
    """As PNG; returns the path. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {path.parent} cannot be made: {reason(error)}") from error
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path


def _complete(evaluation: Evaluation) -> Mapping[str, Scores]:
    return {name: found for name, found in evaluation.scores.items() if len(found.real) and len(found.fake)}


def _title(evaluation: Evaluation) -> str:
    title = f"{PROTOCOLS[evaluation.protocol].title}, " if evaluation.protocol else ""
    return f"{title}{evaluation.model}, view {evaluation.view}"
