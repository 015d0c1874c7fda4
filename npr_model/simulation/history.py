"""What photographs go through before anybody sees them: resizing, sharpening, noise reduction, grain.

Both classes of a training set get these changes alike, so that the detector learns neither "was resized" nor "is
sharp". Images are (N, 3, H, W) floats in 0..1 on any device; all images of a tensor get the same change. Random numbers
come from a CPU generator, so they do not depend on the device.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
SMOOTH_KERNELS = KERNELS[1:]  # for enlarging: box would repeat pixels, as generators do
_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def resample(images: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """(N, 3, H, W) -> (N, 3, *size) with Pillow's kernels and antialiasing, without rounding between the passes."""
    rows, columns = (
        _weights(inputs, outputs, kernel).to(images.device)
        for inputs, outputs in zip(images.shape[2:], size, strict=True)
    )
    return rows @ images @ columns.T


@functools.lru_cache(maxsize=64)
def _weights(inputs: int, outputs: int, kernel: str) -> Tensor:
    """(outputs, inputs) weights of the output samples; each row sums to 1."""
    scale = inputs / outputs
    centres = (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
    x = (torch.arange(inputs, dtype=torch.float64) + 0.5 - centres[:, None]) / max(scale, 1.0)
    inside = (x > -_SUPPORT[kernel]) & (x <= _SUPPORT[kernel])
    weights = torch.where(inside, _kernel(x, kernel), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _kernel(x: Tensor, name: str) -> Tensor:
    distance = x.abs()
    if name == "box":
        return torch.ones_like(x)
    if name == "bilinear":
        return 1 - distance
    if name == "hamming":
        return torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x))
    if name == "lanczos":
        return torch.sinc(x) * torch.sinc(x / 3)
    near = (1.5 * distance - 2.5) * distance**2 + 1  # Keys' cubic with a = -1/2
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, far)


def enlarge(images: Tensor, generator: torch.Generator, probability: float = 0.2) -> Tensor:
    """With this probability, scale down by 1.2 to 2.5 and up again: still photographs, but less sharp."""
    if _uniform(generator) >= probability:
        return images
    factor = _uniform(generator, 1.2, 2.5)
    height, width = images.shape[2:]
    small = max(2, round(height / factor)), max(2, round(width / factor))
    down, up = _choice(KERNELS, generator), _choice(SMOOTH_KERNELS, generator)
    return resample(resample(images, small, down), (height, width), up).clamp(0, 1)


def retouch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Sharpen, denoise and grain, each independently and only sometimes."""
    if _uniform(generator) < 0.15:
        blurred = _blur(images, _uniform(generator, 0.5, 2.0))
        images = (images + _uniform(generator, 0.3, 1.2) * (images - blurred)).clamp(0, 1)
    if _uniform(generator) < 0.15:
        images = _median(images) if _uniform(generator) < 0.5 else _blur(images, _uniform(generator, 0.35, 0.8))
    if _uniform(generator) < 0.15:
        deviation = _uniform(generator, 1.0, 5.0) / 255
        grain = torch.randn(images.shape, generator=generator).to(images.device)
        images = (images + deviation * grain).clamp(0, 1)
    return images


def _blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur; ``deviation`` in pixels."""
    radius = math.ceil(3 * deviation)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (x / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    images = F.pad(images, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(images, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _median(images: Tensor) -> Tensor:
    """Median of 3x3 pixels, per channel."""
    windows = F.pad(images, (1,) * 4, mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(4).sort(-1).values[..., 4]  # median() is not deterministic on CUDA


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _choice(items: tuple[str, ...], generator: torch.Generator) -> str:
    return items[int(torch.randint(len(items), (), generator=generator))]
