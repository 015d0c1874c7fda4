"""Self-blended images: two versions of one photograph, joined along the edge of a random mask.

After the source-target generator, the mask generator and the blending of Shiohara and Yamasaki, "Detecting deepfakes
with self-blended images" (CVPR 2022, figure 3), with the ranges of the authors' code (``src/utils/sbi.py``,
``funcs.py`` and ``blend.py``). All pixels are in 0 .. 1. All random numbers come from torch's generator.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 20 / 255  # of one colour channel
CONTRAST = 0.1  # also the largest change of brightness
SHARPENING = (0.2, 0.5)
LIGHTNESS = (0.5, 1.0)  # how bright the sharpened part is
SCALE = (0.95, 1 / 0.95)
TRANSLATION = (0.03, 0.015)  # share of the width and of the height
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # of the source in the middle of the mask; equally likely
CORNERS = 8  # at most, of a mask
RADIUS = (0.15, 0.4)  # distance of a mask's side from its centre, as a share of the image
RAMP = (0.02, 0.1)  # width of a mask's soft edge, as a share of the image


def self_blended(photographs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target and the self-blended image of each photograph, (N, 3, H, W) like ``photographs``; H, W >= 4.

    One of the source and the target, at random, is the photograph, and the other is :func:`altered`. The source is
    moved a little. The blend is mask * source + (1 - mask) * target. Both results are rounded to 8 bits.
    """
    changed = altered(photographs)
    is_source = torch.rand(_each(photographs), device=photographs.device) < 0.5
    source = moved(torch.where(is_source, changed, photographs))
    target = torch.where(is_source, photographs, changed)
    ratios = photographs.new_tensor(RATIOS)
    ratio = ratios[torch.randint(len(RATIOS), _each(photographs), device=photographs.device)]
    mask = ratio * convex_masks(photographs)
    return _to_8_bits(target), _to_8_bits(mask * source + (1 - mask) * target)


def altered(images: Tensor) -> Tensor:
    """Change colours, brightness and contrast; then sharpen, or shrink to a half or a quarter and enlarge again."""
    shift = _uniform(images, -SHIFT, SHIFT, 3)
    shifted = torch.where(torch.rand(_each(images), device=images.device) < 0.3, images + shift, images)
    contrast, brightness = (_uniform(images, -CONTRAST, CONTRAST) for _ in range(2))
    coloured = ((1 + contrast) * shifted + brightness).clamp(0, 1)
    mean = F.avg_pool2d(coloured, 3, 1, padding=1, count_include_pad=False)
    edges = (8 + _uniform(images, *LIGHTNESS)) * coloured - 9 * mean
    sharp = (coloured + _uniform(images, *SHARPENING) * edges).clamp(0, 1)
    draw = torch.rand(_each(images), device=images.device)
    coarse = torch.where(draw < 0.25, _shrunk(coloured, 2), _shrunk(coloured, 4))
    return torch.where(draw < 0.5, coarse, sharp)


def moved(images: Tensor) -> Tensor:
    """Scale height and width a little, independently, and translate. What comes from outside is mirrored."""
    scales = [_uniform(images, *SCALE).flatten() for _ in range(2)]
    shifts = [2 * _uniform(images, -limit, limit).flatten() for limit in TRANSLATION]
    zero = torch.zeros_like(scales[0])
    rows = torch.stack([scales[0], zero, shifts[0], zero, scales[1], shifts[1]], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def convex_masks(images: Tensor) -> Tensor:
    """(N, 1, H, W) masks in 0 .. 1: a convex polygon for each image, with an edge that falls off linearly."""
    count, _, height, width = images.shape
    sides = torch.arange(CORNERS, device=images.device)
    angle = (sides + _uniform(images, 0, 1, CORNERS).flatten(1)) * (2 * math.pi / CORNERS)
    normals = torch.stack([angle.sin(), angle.cos()], 1)
    centre = _uniform(images, 0.3, 0.7, 2).view(count, 2, 1)
    # A side is at normal . (position - centre) = radius; the least distance to a side is that to the edge.
    offset = _uniform(images, *RADIUS, CORNERS).flatten(1) + (normals * centre).sum(1)
    rows, columns = (((torch.arange(n, device=images.device) + 0.5) / n).to(images.dtype) for n in (height, width))
    inside = images.new_full((count, height, width), math.inf)
    for side in range(CORNERS):
        vertical, horizontal, distance = (x[:, None, None] for x in (*normals[:, :, side].T, offset[:, side]))
        inside = torch.minimum(inside, distance - vertical * rows[:, None] - horizontal * columns)
    return (inside[:, None] / _uniform(images, *RAMP)).clamp(0, 1)


def _each(images: Tensor) -> tuple[int, int, int, int]:
    """The shape of one value for each image."""
    return len(images), 1, 1, 1


def _uniform(images: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """(N, channels, 1, 1) random values."""
    return low + (high - low) * torch.rand(len(images), channels, 1, 1, dtype=images.dtype, device=images.device)


def _shrunk(images: Tensor, factor: int) -> Tensor:
    size = [side // factor for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, size), images.shape[2:], mode="bilinear", align_corners=False)


def _to_8_bits(pixels: Tensor) -> Tensor:
    return (255 * pixels).round() / 255
