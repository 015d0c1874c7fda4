"""Why an image got its logit: the NPR map and its spectrum, the evidence by place, and the pixels it hangs on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npr_kernels import npr, stem_forward
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError

MAX_PIXELS = 2**22  # the saliency keeps every layer's output: about 5 GB for so many
TILE = 128  # pixels, of the tiles whose spectra are averaged


@dataclass(frozen=True)
class Explanation:
    """Of one image of (H, W) pixels, odd edges trimmed to whole cells.

    Attributes:
        logit: what the network gives in float32.
        npr: (3, H, W) float32, grey levels in [-255, 255]: every pixel minus its cell's anchor (paper, equation 4).
        activation: (ceil(H / 8), ceil(W / 8)) float32: the logit that each place of the last layer's output stands for,
            the class activation map of Zhou et al. (2016) with the bias included, so that its mean is the logit.
        saliency: (H, W) float32: how much the logit moves per grey level of a pixel, the largest magnitude over the
            three channels (Simonyan et al. 2014). An anchor moves its whole cell, so it usually stands out.
        spectrum: (T, T') float32, T = min(H, 128): power of the NPR map in decibels, the mean over the channels and
            over half-overlapping tiles (Welch's method, Hann windows); frequency 0 is at [T // 2, T' // 2].
    """

    logit: float
    npr: np.ndarray
    activation: np.ndarray
    saliency: np.ndarray
    spectrum: np.ndarray


def explain(model: NPRDetector, pixels: np.ndarray) -> Explanation:
    """``model`` in evaluation mode; ``pixels``: (H, W, 3) uint8.

    Raises InputError for more than MAX_PIXELS pixels, ValueError for less than one cell.
    """
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{width}x{height} pixels are more than can be explained at once ({MAX_PIXELS}): give a smaller view, as "
            "in --view crop:1024"
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
    """(C, H, W) to the power in decibels, shaped and averaged as in :class:`Explanation`."""
    height, width = (min(side, TILE) for side in values.shape[1:])
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    tiles = np.lib.stride_tricks.sliding_window_view(values, (height, width), (1, 2))
    tiles = tiles[:, :: max(1, height // 2), :: max(1, width // 2)]
    power, count = np.zeros((height, width)), 0
    for row in range(tiles.shape[1]):  # a row at a time: all tiles together are four times the image
        frequencies = np.fft.fft2(tiles[:, row] * window)
        power += np.square(np.abs(frequencies)).sum((0, 1))
        count += math.prod(frequencies.shape[:2])
    power = power / count / np.square(window).sum()
    return np.fft.fftshift(10 * np.log10(power + 1e-12)).astype(np.float32)


def _evidence(model: NPRDetector, image: Tensor) -> tuple[float, np.ndarray, Tensor]:
    """The logit, the class activation map, and the logit's gradient to the pixels, (3, H, W) per grey level."""
    deviation = image.new_tensor(model.pixel_std, dtype=torch.float32).view(3, 1, 1)
    # The means of normalisation are left out: they cancel in NPR.
    values = (image / (255 * deviation)).to(memory_format=torch.channels_last).requires_grad_()
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)  # else every layer would keep its input for gradients that nobody asks for
        features = model.layer2(model.layer1(stem_forward(values, model.conv1, model.bn1)))
        logit = model.fc1(features.mean((2, 3)))
        (gradient,) = torch.autograd.grad(logit.sum(), values)
    finally:
        for parameter, required in learning.items():
            parameter.requires_grad_(required)
    with torch.no_grad():
        weight = model.fc1.weight.view(1, -1, 1, 1)
        activation = torch.nn.functional.conv2d(features.detach(), weight, model.fc1.bias)[0, 0]
    return logit.item(), activation.float().cpu().numpy(), gradient[0] / (255 * deviation)
