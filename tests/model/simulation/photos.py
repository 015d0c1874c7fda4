"""Pieces of photographs, and the trace that the nearest neighbour leaves in them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from npr_model.simulation import Simulator

PHOTOGRAPHS = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


def crops(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, side, side) uint8 pieces of two photographs."""
    random = np.random.default_rng(seed)
    pieces = []
    for number in range(count):
        photograph = PHOTOGRAPHS[number % 2]
        top, left = (int(random.integers(length - side + 1)) for length in photograph.shape[1:])
        pieces.append(photograph[:, top : top + side, left : left + side])
    return torch.stack(pieces)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number_of(simulator: Simulator, kind: str, depth: int) -> int:
    return next(i for i, model in enumerate(simulator.decoders) if (model.kind, model.depth) == (kind, depth))


def within_cells(images: torch.Tensor) -> float:
    """Energy of the horizontal differences inside cells of two pixels over that of those across their edges."""
    energy = (images[..., 1:].float() - images[..., :-1]).square()
    return (energy[..., 0::2].mean() / energy[..., 1::2].mean()).item()


def write_photographs(folder: Path) -> Path:
    """Six photographs, pieces of two scenes."""
    folder.mkdir()
    for number in range(6):
        top, left = 60 * (number // 2), 100 * (number // 2)
        piece = PHOTOGRAPHS[number % 2][:, top : top + 150, left : left + 200]
        Image.fromarray(piece.permute(1, 2, 0).numpy()).save(folder / f"photo{number}.png")
    return folder


def rows_of(output: Path) -> list[dict]:
    with open(output / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Doubler:
    """A generator that enlarges by nearest neighbour."""

    name: str = "test/doubler"
    family: str = "test"
    up_sampling: str = "nearest"
    scale: int = 2
    multiple: int = 3

    def __call__(self, image, random):
        return image.repeat(2, 0).repeat(2, 1)
