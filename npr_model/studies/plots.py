"""Figures of a robustness study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npr_model.reporting.figures import new_figure, save
from npr_model.studies.robustness import UNCHANGED, Point, axis_values


def plot_robustness(points: Sequence[Point], families: Mapping[str, Sequence[str]], folder: Path) -> list[Path]:
    """Write one PNG per family of perturbations: ROC AUC of each generator along its axis; return the paths."""
    by_text = {point.perturbation: point for point in points}
    paths = []
    for family, texts in families.items():
        values = axis_values(texts)
        figure, axes = new_figure()
        places = values if values is not None else list(range(len(texts)))
        unchanged = by_text[UNCHANGED]
        for number, name in enumerate(unchanged.generators):
            level = unchanged.generators[name].roc_auc
            if level is None:
                continue
            areas = [by_text[text].generators[name].roc_auc or math.nan for text in texts]
            marker: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "-" if values else ""}
            axes.plot(places, [100 * area for area in areas], label=name, color=f"C{number}", **marker)
            axes.axhline(100 * level, color=f"C{number}", linewidth=0.8, linestyle=":")
        if values is None:
            axes.set_xticks(places, texts, rotation=20, ha="right", fontsize=8)
        elif values[0] > values[-1]:
            axes.invert_xaxis()  # qualities fall: damage grows to the right
        axes.set(xlabel=family, ylabel="ROC AUC (%)")
        axes.set_title("Robustness; dotted: unchanged files", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        name = "-".join("".join(c if c.isalnum() else " " for c in family.lower()).split())
        paths.append(save(figure, folder / f"{name}.png"))
    return paths
