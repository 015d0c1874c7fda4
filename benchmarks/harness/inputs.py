"""What the benchmarks compute on: images and parameters, a detector with random weights, files, and tars of images.

Everything is random but the same for every call. Functions that need an image codec or a checkpoint import it
themselves: a machine rented for its GPU may have torch and little else.
"""

from __future__ import annotations

import functools
import tarfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels.backends.base import Convolution
from npr_model.detectors.base import IMAGENET_STD, DetectorNetwork
from npr_model.detectors.npr import NPRDetector

if TYPE_CHECKING:
    from npr_model.checkpoints import LoadedCheckpoint

IN_CHANNELS, OUT_CHANNELS = 3, 64
PRODUCTS = 24  # per output of a 3x3 convolution: of 27, the three of the tap that always sees the anchor are zero
DTYPE_NAMES = {
    torch.uint8: "uint8",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


# ---- for operators


def convolution(dtype: torch.dtype) -> Convolution:
    """Return the detector's first convolution for images of ``dtype``; its scale normalises uint8 images."""
    scale = tuple(2 / 3 / (255 * std) for std in IMAGENET_STD) if dtype == torch.uint8 else (2 / 3,)
    return Convolution((2, 2), (1, 1), grid_size=2, anchor=0, scale=scale)


def images(
    batch: int, size: int, dtype: torch.dtype, device: torch.device, count: int = 1, channels_last: bool = True
) -> list[Tensor]:
    """Return ``count`` batches (batch, 3, size, size) of noise: raw pixels if uint8, else normalised ones."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, size, size, IN_CHANNELS)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def draw() -> Tensor:
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=device)
        x = pixels.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return x if dtype == torch.uint8 else ((x / 255 - 0.45) / 0.225).to(dtype)

    return [draw() for _ in range(count)]


def parameters(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return weight (64, 3, 3, 3) and bias (64,) of a convolution."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT_CHANNELS, IN_CHANNELS, 3, 3, generator=generator) * 0.3
    bias = torch.randn(OUT_CHANNELS, generator=generator) * 0.3
    return weight.to(device, dtype), bias.to(device, dtype)


# ---- for the detector


def random_detector(size: str = "paper") -> NPRDetector:
    """Return a detector with batch norms as after training: fresh ones change nothing, which hides mistakes."""
    torch.manual_seed(0)
    detector = NPRDetector(size=size)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return detector.eval()


def random_pixels(batch: int, size: int) -> Tensor:
    """Return uint8 (batch, 3, size, size): smooth patches and noise, in a different mixture in each image."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, 3, 8, 8, generator=generator)
    smooth = F.interpolate(smooth, (size, size), mode="bilinear", align_corners=False)
    noise = torch.randn(batch, 3, size, size, generator=generator) * torch.linspace(0.01, 0.2, batch).view(-1, 1, 1, 1)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def as_checkpoint(network: DetectorNetwork) -> LoadedCheckpoint:
    """Return a checkpoint of ``network``, as scorers take it."""
    from npr_model.checkpoints import LoadedCheckpoint, Metadata

    return LoadedCheckpoint(network, Metadata(), "0" * 64, Path("random"))


# ---- files


def make_files(folder: Path, format: str, size: int, count: int) -> list[Path]:
    """Write ``count`` different images as "JPEG", "PNG" or "WEBP" files, the lossy ones of quality 90."""
    from npr_model.imaging.encode import encode_jpeg, encode_png, encode_webp

    encode = {
        "JPEG": functools.partial(encode_jpeg, quality=90),
        "WEBP": functools.partial(encode_webp, quality=90),
        "PNG": encode_png,
    }[format]
    paths = []
    for number, pixels in enumerate(random_pixels(count, size).permute(0, 2, 3, 1).numpy()):
        paths.append(folder / f"{number:04}.{format.lower()}")
        paths[-1].write_bytes(encode(pixels))
    return paths


def make_tars(folder: Path, count: int, images_per_tar: int = 20_000) -> None:
    """Write ``count`` different PNGs of 16x16 into tar files."""
    from npr_model.imaging.encode import encode_png

    generator = np.random.default_rng(0)
    for first in range(0, count, images_per_tar):
        with tarfile.open(folder / f"{first:09}.tar", "w") as archive:
            for number in range(first, min(count, first + images_per_tar)):
                data = encode_png(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                member = tarfile.TarInfo(f"{number:09}.png")
                member.size = len(data)
                archive.addfile(member, BytesIO(data))
