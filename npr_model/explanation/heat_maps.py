"""Figures of an explanation, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npr_model.explanation.explain import Explanation
from npr_model.reporting.figures import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

CHANNELS = ("red", "green", "blue")
SIGNED = "RdBu_r"
SHOWN = 98  # percentile of the magnitudes at which a colour scale ends


def plot_explanation(pixels: np.ndarray, explanation: Explanation, folder: Path) -> list[Path]:
    """Write npr.png, activation.png, saliency.png and spectrum.png; return their paths.

    ``pixels``: the (H, W, 3) uint8 image that was explained.
    """
    figures = {
        "npr": differences("NPR: each pixel minus its cell's anchor", explanation.npr, pixels),
        "activation": activation(pixels, explanation),
        "saliency": saliency(pixels, explanation),
        "spectrum": spectrum(explanation),
    }
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def plot_difference(first: Explanation, second: Explanation, folder: Path) -> Path:
    """Write difference.png, one NPR map minus the other of equal size (Figure 1 of the paper); return its path."""
    return save(
        differences("NPR of the image minus NPR of the other", first.npr - second.npr), folder / "difference.png"
    )


def differences(title: str, maps: np.ndarray, pixels: np.ndarray | None = None) -> Figure:
    """Draw (3, H, W) grey levels, one panel per channel on one scale, with ``pixels`` beside them if given."""
    figure, panels = _panels(4 if pixels is not None else 3, maps.shape[1:])
    figure.suptitle(title, fontsize=10)
    if pixels is not None:
        _show(panels[0], pixels, "image")
    limit = _limit(maps)
    for axes, channel, name in zip(panels[-3:], maps, CHANNELS, strict=True):
        shown = _show(axes, channel, name, cmap=SIGNED, vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=panels, label="grey levels", shrink=0.8)
    return figure


def activation(pixels: np.ndarray, explanation: Explanation) -> Figure:
    """Draw the class activation map over the image (Figure 4 of the paper). Red: generated; blue: real."""
    figure, panels = _panels(2, pixels.shape[:2])
    figure.suptitle(
        f"Class activation map; its mean is the logit of NPR for this part, {explanation.logit:.3f}", fontsize=10
    )
    _show(panels[0], pixels, "image")
    _show(panels[1], pixels.mean(2), "red: generated, blue: real", cmap="gray", vmin=0, vmax=255)
    height, width = pixels.shape[:2]
    limit = _limit(explanation.activation)
    place: dict[str, Any] = {"extent": (0, width, height, 0), "interpolation": "bilinear", "alpha": 0.55}
    shown = panels[1].imshow(explanation.activation, cmap=SIGNED, vmin=-limit, vmax=limit, **place)
    figure.colorbar(shown, ax=panels, label="logit", shrink=0.8)
    return figure


def saliency(pixels: np.ndarray, explanation: Explanation) -> Figure:
    """Draw the magnitude of the gradient beside the image."""
    figure, panels = _panels(2, pixels.shape[:2])
    figure.suptitle("Saliency: how strongly each pixel changes the logit of NPR", fontsize=10)
    _show(panels[0], pixels, "image")
    shown = _show(panels[1], explanation.saliency, "gradient", cmap="magma", vmin=0, vmax=_limit(explanation.saliency))
    figure.colorbar(shown, ax=panels, label="change of the logit per grey level", shrink=0.8)
    return figure


def spectrum(explanation: Explanation) -> Figure:
    """Draw the power spectrum of the NPR map. Its own cells show at half a cycle per pixel; other peaks are traces."""
    figure, axes = new_figure(5.6, 4.6)
    rows, columns = (
        (-(side // 2) / side - 0.5 / side, (side - 1) // 2 / side + 0.5 / side) for side in explanation.spectrum.shape
    )
    low, high = np.percentile(explanation.spectrum, (0.5, SHOWN))
    shown = axes.imshow(explanation.spectrum, extent=(*columns, *reversed(rows)), cmap="magma", vmin=low, vmax=high)
    axes.set(xlabel="cycles per pixel, along rows", ylabel="cycles per pixel, along columns")
    axes.set_title("Power spectrum of the NPR map", fontsize=10)
    figure.colorbar(shown, label="dB")
    return figure


def _panels(count: int, size: tuple[int, int]) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in a row, or two by two, for images of ``size`` (height, width)."""
    figure, first = new_figure(*_inches(count, size))
    first.remove()
    rows = 2 if count == 4 else 1
    return figure, list(np.ravel(figure.subplots(rows, count // rows)))


def _inches(count: int, size: tuple[int, int]) -> tuple[float, float]:
    shape = min(max(size[0] / size[1], 0.25), 4.0)
    rows = 2 if count == 4 else 1
    return 3.4 * count / rows + 1.0, 3.4 * shape * rows + 0.8


def _show(axes: Axes, values: np.ndarray, title: str, **options: Any) -> AxesImage:
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    return axes.imshow(values, interpolation="nearest", **options)


def _limit(values: np.ndarray) -> float:
    """End of a colour scale; never 0."""
    return max(float(np.percentile(np.abs(values), SHOWN)), 1e-6)
