"""From a decoded image to a training crop. No function here knows the class: both are treated alike.

All random numbers come from the generator that is passed in, so that a crop can be reproduced.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.encode import encode_jpeg, encode_webp, encoded_as
from npr_model.imaging.filters import gaussian_blur, resize
from npr_model.imaging.headers import Encoding, read_encoding
from npr_model.imaging.views import View, tile
from npr_model.training.config import TrainConfig

INTERPOLATIONS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def augment(
    pixels: np.ndarray, config: TrainConfig, random: np.random.Generator, partner: Encoding | None = None
) -> np.ndarray:
    """Turn an image into a training crop, as :class:`TrainConfig` describes.

    Args:
        pixels: (H, W, 3) uint8, at least one cell.
        config: The training config.
        random: Source of all random numbers.
        partner: Encoding of a file of the other class, for :func:`match`.

    Returns:
        (S, S, 3) uint8 with S = ``config.crop_size``.
    """
    if partner is not None:
        pixels = match(pixels, partner, random)
    if config.resize is not None:
        pixels = View("resize", config.resize).apply(pixels, config.grid_size)
    factor = random.uniform(*config.rescale_factor) if random.random() < config.rescale_probability else 1.0
    pixels = crop(pixels, max(1, round(config.crop_size / factor)), config.grid_size, random)
    if pixels.shape[0] != config.crop_size:
        pixels = resize(
            pixels, config.crop_size, config.crop_size, INTERPOLATIONS[random.integers(len(INTERPOLATIONS))]
        )
    if random.random() < config.flip_probability:
        pixels = flip(pixels)
    if random.random() < config.blur_probability:
        pixels = gaussian_blur(pixels, random.uniform(*config.blur_sigma))
    if random.random() < config.webp_probability:
        pixels = decode(encode_webp(pixels, _integer(config.webp_quality, random))).pixels
    if random.random() < config.jpeg_probability:
        pixels = decode(encode_jpeg(pixels, _integer(config.jpeg_quality, random))).pixels
    return np.ascontiguousarray(pixels)


def match(pixels: np.ndarray, partner: Encoding, random: np.random.Generator) -> np.ndarray:
    """Cut an image at random to at most the partner's size and re-encode it with the partner's codec.

    With partners from the other class, both classes have gone through one codec of each class, and their sizes have the
    same distribution. The codec's blocks lie where they would if the whole image had been encoded.
    """
    sides = [min(pair) for pair in zip(pixels.shape, (partner.height, partner.width), strict=False)]
    starts = [int(random.integers(whole - side + 1)) for whole, side in zip(pixels.shape, sides, strict=False)]
    # Whole blocks of 16 pixels (8x8 with halved chroma) from the image's origin, plus one around, as chroma is
    # interpolated.
    outer = [slice(max(0, start // 16 * 16 - 16), start + side + 16) for start, side in zip(starts, sides, strict=True)]
    inner = [slice(s - o.start, s - o.start + side) for s, o, side in zip(starts, outer, sides, strict=True)]
    return encoded_as(pixels[tuple(outer)], partner)[tuple(inner)]


def crop(pixels: np.ndarray, size: int, grid_size: int, random: np.random.Generator) -> np.ndarray:
    """Cut a random (size, size, 3) crop at any offset, odd ones too, as images in the wild have been cut anywhere.

    Smaller images are tiled.
    """
    pixels = tile(pixels, size, grid_size)
    top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def flip(pixels: np.ndarray) -> np.ndarray:
    """Flip left to right. (torch copies 3-byte pixels ten times as fast as NumPy.)"""
    return torch.from_numpy(np.require(pixels, requirements="W")).flip(1).numpy()


@functools.lru_cache(maxsize=2**16)
def encoding_of(path: Path) -> Encoding:
    """Return a file's encoding, from its header. Raises ImageError."""
    return read_encoding(path)


def _integer(limits: tuple[int, int], random: np.random.Generator) -> int:
    return int(random.integers(limits[0], limits[1] + 1))
