"""Figures as PNG files, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from npr_model.errors import InputError
from npr_model.files import atomic_write, make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def require_matplotlib() -> None:
    """Raise InputError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'npr-kernels[plots]'")


def new_figure(width: float = 6.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """Return a figure with one plot, of this size in inches, independent of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path. Raises InputError if the folder cannot be made."""
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path
