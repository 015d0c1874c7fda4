"""The photographs that fakes are made from: finding them, splitting them into parts, and cutting crops from them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npr_model.datasets.folders import OnOther, why_no_image
from npr_model.datasets.folders import read as read_image
from npr_model.errors import InputError, reason
from npr_model.files import readable_name, walk_files
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import header_size
from npr_model.simulation import history

TRAIN, VALIDATION = "train", "validation"
_FIT_CROPS, _FIT_SIDE = 256, 128  # number and side of the crops that decoders are trained on


class SimulationError(InputError):
    """Photographs or an output that cannot be used."""


@dataclass(frozen=True)
class Photograph:
    """A usable photograph with the size in its header."""

    path: Path
    width: int
    height: int


def find_photographs(
    paths: Iterable[Path], crop_size: int, on_other: OnOther = lambda path, reason: None
) -> tuple[list[Photograph], dict[str, str]]:
    """Find usable photographs in files and folders; only headers are read, and they decide what is an image.

    Returns them, and the reasons why others cannot be used (unreadable, smaller than a crop), by name. ``on_other`` is
    called with each file in the folders that is no image, and the reason. Raises SimulationError for a path that does
    not exist, and if no photograph is usable.
    """
    problems: dict[str, str] = {}
    images: dict[Path, None] = {}  # in order, without duplicates

    def unlisted(error: OSError) -> None:
        problems[readable_name(error.filename)] = f"the folder cannot be listed: {reason(error)}"

    for path in map(Path, paths):
        if not path.exists():
            raise SimulationError(f"{readable_name(path)} does not exist")
        if not path.is_dir():
            images[path] = None
            continue
        for file in walk_files(path, on_error=unlisted):
            if why := why_no_image(file):
                on_other(file, why)
            else:
                images[file] = None
    usable = []
    with ThreadPoolExecutor(8) as pool:
        for path, result in zip(images, pool.map(functools.partial(_measure, crop_size), images), strict=True):
            if isinstance(result, Photograph):
                usable.append(result)
            else:
                problems[readable_name(path)] = str(result)
    if not usable:
        example = next((f", e.g. {name}: {problem}" for name, problem in problems.items()), "")
        raise SimulationError(f"none of {len(images)} photographs can be used{example}")
    return usable, problems


def _measure(crop_size: int, path: Path) -> Photograph | ImageError:
    """Read a file's size; the reason why it cannot be used is returned."""
    try:
        width, height = header_size(path)
    except ImageError as error:
        return error
    if min(width, height) < crop_size:
        return ImageError(f"{width}x{height} pixels, smaller than a crop of {crop_size}")
    return Photograph(path, width, height)


def file_stem(path: Path) -> str:
    """Return the scene that a file shows: files with the same name in several folders count as one photograph."""
    return path.stem


def split(
    photographs: Sequence[Photograph], fraction: float, scene: Callable[[Path], str] = file_stem
) -> dict[str, list[Photograph]]:
    """Split photographs by part: {"": all} for the fraction 0, else train and validation with at least one scene each.

    Validation gets the scenes with the smallest sha256 of their names. So the split does not depend on order, folders
    or seed, and changes little when photographs are added. Raises SimulationError.
    """
    if not 0 <= fraction < 1:
        raise SimulationError(f"the validation fraction must be at least 0 and less than 1, got {fraction}")
    if not fraction:
        return {"": list(photographs)}
    scenes = sorted(
        {scene(photograph.path) for photograph in photographs},
        key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(),
    )
    if len(scenes) < 2:
        raise SimulationError("a validation part needs at least two photographs")
    held_out = set(scenes[: min(len(scenes) - 1, max(1, round(fraction * len(scenes))))])
    parts: dict[str, list[Photograph]] = {TRAIN: [], VALIDATION: []}
    for photograph in photographs:
        parts[VALIDATION if scene(photograph.path) in held_out else TRAIN].append(photograph)
    return parts


def crops_to_fit(photographs: Sequence[Photograph], seed: int, problems: dict[str, str]) -> Tensor:
    """Return crops at many scales to train decoders on: (N, 3, S, S) uint8, N about 256 or more, S up to 128.

    Photographs that cannot be decoded are added to ``problems``.
    """
    side = min(_FIT_SIDE, *(min(photograph.width, photograph.height) for photograph in photographs))
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(photographs))[:_FIT_CROPS].tolist()
    crops: list[np.ndarray] = []
    for index in chosen:
        pixels = read(photographs[index], problems)
        if pixels is not None and min(pixels.shape[:2]) >= side:
            crops += [cut(pixels, side, random, scale_down=True)[0] for _ in range(-(-_FIT_CROPS // len(chosen)))]
    if not crops:
        raise SimulationError("none of the photographs can be decoded")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def cut(
    pixels: np.ndarray, size: int, random: np.random.Generator, *, scale_down: bool
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut a (size, size, 3) uint8 piece from (H, W, 3) uint8; returns it with its left, top and side in the photograph.

    With ``scale_down``, two in three pieces are scaled down by a random kernel, from up to four times the side.
    """
    side = size
    if scale_down and random.random() > 1 / 3:
        side = min(round(size * random.uniform(1.15, 4)), *pixels.shape[:2])
    top, left = (int(random.integers(length - side + 1)) for length in pixels.shape[:2])
    piece = pixels[top : top + side, left : left + side]
    if side != size:
        kernel = history.KERNELS[int(random.integers(len(history.KERNELS)))]
        piece = to_pixels(history.resample(to_tensor(piece), (size, size), kernel))
    return piece, (left, top, side)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255  # copied, as pixels may be read-only


def to_pixels(image: Tensor) -> np.ndarray:
    """Inverse of :func:`to_tensor`, clipped and rounded."""
    return image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def read(photograph: Photograph, problems: dict[str, str]) -> np.ndarray | None:
    """Return the pixels of a photograph. If it cannot be decoded, add it to ``problems`` and return None."""
    try:
        return read_image(photograph.path).pixels
    except ImageError as error:
        problems[readable_name(photograph.path)] = str(error)
        return None
