"""Why an image got its logit: the NPR map and its spectrum, the class activation map, and the saliency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npr_kernels import npr
from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.pair import Pair
from npr_model.errors import InputError
from npr_model.scoring.rows import Row

MAX_PIXELS = 2**22  # the saliency keeps every layer's output, about 5 GB for this many
TILE = 128  # side in pixels of the tiles whose spectra are averaged


@dataclass(frozen=True)
class Explanation:
    """Maps of one image of (H, W) pixels, trimmed to whole cells.

    Attributes:
        logit: The network's logit in float32.
        npr: (3, H, W) float32 in grey levels, -255 .. 255: each pixel minus its cell's anchor (equation 4 of the
            paper).
        activation: (ceil(H / 8), ceil(W / 8)) float32, or (ceil(H / 16), ceil(W / 16)) of the size "fast": class
            activation map of Zhou et al. (2016) with the bias included. It is the logit of each place in the last
            layer's output; its mean is the logit.
        saliency: (H, W) float32: change of the logit per grey level of a pixel, the largest magnitude over the channels
            (Simonyan et al. 2014). An anchor changes its whole cell, so anchors usually stand out.
        spectrum: (T, T') float32, T = min(H, 128): power of the NPR map in decibels, averaged over channels and
            half-overlapping tiles (Welch's method, Hann windows). Frequency 0 is at [T // 2, T' // 2].
    """

    logit: float
    npr: np.ndarray
    activation: np.ndarray
    saliency: np.ndarray
    spectrum: np.ndarray


def npr_network(model: DetectorNetwork, row: Row) -> NPRDetector | None:
    """Return the NPR network that had a part in the logit of ``row``, whose maps can be shown; None if none had."""
    if isinstance(model, Cascade):
        model = model.parts[row.scored_by == model.second_checkpoint]
    if isinstance(model, Pair):
        model = model.parts[0]
    return model if isinstance(model, NPRDetector) else None


def explain(model: NPRDetector, pixels: np.ndarray) -> Explanation:
    """Explain the logit of one image.

    Args:
        model: The network, in evaluation mode.
        pixels: (H, W, 3) uint8.

    Raises:
        InputError: The image has more than MAX_PIXELS pixels.
        ValueError: The image is smaller than one cell.
    """
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{width}x{height} pixels are too many to explain (the limit is {MAX_PIXELS}): use a smaller view, "
            "e.g. --view crop:1024"
        )
    device = model.fc1.weight.device
    image = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)[None]
    differences = npr(image, model.grid_size, model.anchor, backend=model.backend)[0].cpu().numpy()
    rows, columns = differences.shape[1:]
    logit, activation, gradient = _evidence(model, image)
    return Explanation(
        logit,
        differences,
        activation,
        gradient.abs().amax(0)[:rows, :columns].cpu().numpy(),
        spectrum(differences),
    )


def spectrum(values: np.ndarray) -> np.ndarray:
    """Return the power of (C, H, W) values in decibels, as described in :class:`Explanation`."""
    height, width = (min(side, TILE) for side in values.shape[1:])
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    tiles = np.lib.stride_tricks.sliding_window_view(values, (height, width), (1, 2))
    tiles = tiles[:, :: max(1, height // 2), :: max(1, width // 2)]
    power, count = np.zeros((height, width)), 0
    for row in range(tiles.shape[1]):  # one row at a time: all tiles together are four times the image
        frequencies = np.fft.fft2(tiles[:, row] * window)
        power += np.square(np.abs(frequencies)).sum((0, 1))
        count += math.prod(frequencies.shape[:2])
    power = power / count / np.square(window).sum()
    return np.fft.fftshift(10 * np.log10(power + 1e-12)).astype(np.float32)


def _evidence(model: NPRDetector, image: Tensor) -> tuple[float, np.ndarray, Tensor]:
    """Return the logit, the class activation map, and the logit's gradient per grey level, (3, H, W)."""
    deviation = image.new_tensor(model.pixel_std, dtype=torch.float32).view(3, 1, 1)
    # The means of the normalisation cancel in NPR.
    values = (image / (255 * deviation)).to(memory_format=torch.channels_last).requires_grad_()
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)  # otherwise every layer would keep its input for gradients that are not needed
        features = model.maps(values)
        logit = model.fc1(features.mean((2, 3)))
        (gradient,) = torch.autograd.grad(logit.sum(), values)
    finally:
        for parameter, required in learning.items():
            parameter.requires_grad_(required)
    with torch.no_grad():
        weight = model.fc1.weight.view(1, -1, 1, 1)
        activation = torch.nn.functional.conv2d(features.detach(), weight, model.fc1.bias)[0, 0]
    return logit.item(), activation.float().cpu().numpy(), gradient[0] / (255 * deviation)
