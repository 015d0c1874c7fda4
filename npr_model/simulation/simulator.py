"""A set of trained decoders that turns batches of photographs into fakes, on any device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.simulation import history
from npr_model.simulation.autoencoders import KINDS, MAX_DEPTH, Autoencoder, fit, psnr

DEPTHS = (1, 2, 3)
GROUP = 4  # images that share a draw: few enough for variety, enough for a GPU
# Pixels decoded around an image and cut off again, which removes the traces of padding. A multiple of every decoder's
# cells, so that the cells do not move.
MARGIN = 2**MAX_DEPTH

_HEADER_KEY = "npr_decoders"


class SimulatorError(InputError):
    """Decoders that cannot be loaded or do not fit."""


@dataclass(frozen=True)
class Draw:
    """How a fake is made.

    Attributes:
        decoder: Number of the decoder.
        phase: (rows, columns), where the image starts in the up-sampling cells of 2**depth pixels.
        strength: 1 for the decoder's output; less mixes the photograph's own residual back in.
    """

    decoder: int
    phase: tuple[int, int]
    strength: float


class Simulator(nn.Module):
    """Draws a random decoder for every few images.

    Args:
        decoders: Trained decoders.
        strength: Lowest and highest share of the photograph's residual that the decoder's replaces.
        aligned: Share of the images whose up-sampling grid starts at their corner, as in uncropped images; it starts
            anywhere in the others.

    Images are (N, 3, H, W) uint8, or floats in 0..1, of any size. A result has the dtype, size and device of its
    images. ``generator`` is a CPU generator; its state gives the same draws on any device.
    """

    def __init__(
        self, decoders: Sequence[Autoencoder], *, strength: tuple[float, float] = (0.6, 1.0), aligned: float = 0.5
    ) -> None:
        if not decoders:
            raise ValueError("a simulator needs at least one decoder")
        if not 0 < strength[0] <= strength[1] <= 1:
            raise ValueError(f"strength must be (low, high) with 0 < low <= high <= 1, got {strength}")
        if not 0 <= aligned <= 1:
            raise ValueError(f"aligned must be in 0 .. 1, got {aligned}")
        super().__init__()
        self.decoders = cast(Any, nn.ModuleList(decoders).eval().requires_grad_(False))  # of Autoencoder
        self.strength, self.aligned = strength, aligned

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of up-sampling of its decoders, in the order of KINDS."""
        there = {decoder.kind for decoder in self.decoders}
        return tuple(kind for kind in KINDS if kind in there)

    def select(self, kinds: Sequence[str]) -> Simulator:
        """Return a simulator with the decoders of ``kinds`` only. Raises SimulatorError for a kind without decoder."""
        for kind in kinds:
            if kind not in self.kinds:
                raise SimulatorError(f"there is no decoder of the kind {kind!r}; there are {', '.join(self.kinds)}")
        chosen = [decoder for decoder in self.decoders if decoder.kind in kinds]
        return Simulator(chosen, strength=self.strength, aligned=self.aligned)

    def draw(self, generator: torch.Generator, kind: str | None = None) -> Draw:
        """Draw a decoder (of ``kind``, if given), a phase and a strength."""
        candidates = [i for i, decoder in enumerate(self.decoders) if kind in (None, decoder.kind)]
        if not candidates:
            raise ValueError(f"there is no decoder of the kind {kind!r}; there are {', '.join(self.kinds)}")
        decoder, row, column = torch.randint(2**20, (3,), generator=generator).tolist()
        share, strength = torch.rand(2, generator=generator).tolist()
        decoder = candidates[decoder % len(candidates)]
        factor = self.decoders[decoder].factor
        phase = (0, 0) if share < self.aligned else (row % factor, column % factor)
        low, high = self.strength
        return Draw(decoder, phase, low + (high - low) * strength)

    @torch.no_grad()
    def apply(self, images: Tensor, draw: Draw) -> Tensor:  # type: ignore[override]  # nn.Module's is not needed
        """Return the fakes of ``images`` for a draw."""
        _check(images)
        x = _to_float(images)
        decoder, (top, left) = self.decoders[draw.decoder], draw.phase
        height, width = x.shape[2:]
        bottom, right = (-side % decoder.factor for side in (height + top, width + left))
        padding = (MARGIN + left, MARGIN + right, MARGIN + top, MARGIN + bottom)
        padded = F.pad(x, padding, mode="replicate").contiguous(memory_format=torch.channels_last)
        decoded = decoder(padded)[:, :, MARGIN + top :, MARGIN + left :][:, :, :height, :width]
        return _to_dtype(torch.lerp(x, decoded, draw.strength), images.dtype)

    def simulate_batch(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a fake of each image. Each GROUP of neighbours in the batch shares a draw."""
        _check(images)
        fakes = torch.empty_like(images)
        for group in _groups(len(images)):
            fakes[group] = self.apply(images[group], self.draw(generator))
        return fakes

    def pair_batch(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (real, fake): images with the changes of :mod:`npr_model.simulation.history`, and fakes of them.

        A pair shares the changes before the decoder (scaling). The changes after it (sharpening, noise reduction,
        grain) are drawn for each class independently, with equal probability.
        """
        _check(images)
        reals, fakes = torch.empty_like(images), torch.empty_like(images)
        for group in _groups(len(images)):
            real, fake, _ = self.pair(images[group], generator)
            reals[group], fakes[group] = real, fake
        return reals, fakes

    def pair(self, images: Tensor, generator: torch.Generator, kind: str | None = None) -> tuple[Tensor, Tensor, Draw]:
        """As :meth:`pair_batch`, with one draw for all ``images``, which is also returned."""
        x = history.enlarge(_to_float(images), generator)
        draw = self.draw(generator, kind)
        fake = self.apply(x, draw)
        real, fake = history.retouch(x, generator), history.retouch(fake, generator)
        return _to_dtype(real, images.dtype), _to_dtype(fake, images.dtype), draw


def fit_simulator(
    crops: Tensor,
    *,
    kinds: Sequence[str] = KINDS,
    depths: Sequence[int] = DEPTHS,
    steps: int = 300,
    seed: int = 0,
    on_decoder: Callable[[Autoencoder, float], None] = lambda decoder, psnr: None,
    on_step: Callable[[], None] = lambda: None,
) -> Simulator:
    """Train a decoder of each kind and depth.

    Args:
        crops: Photographs, (N, 3, H, W) uint8; training runs on their device.
        kinds, depths: What to train.
        steps: Optimizer steps per decoder.
        seed: Random seed.
        on_decoder: Called with each decoder and its PSNR in dB on the crops.
        on_step: Called after every step.
    """
    _check(crops)
    if crops.dtype != torch.uint8 or min(crops.shape[2:]) < 32 or not len(crops):
        raise ValueError(f"crops must be uint8 and at least 32 a side, got {crops.dtype} of {tuple(crops.shape)}")
    decoders = []
    for number, (depth, kind) in enumerate((depth, kind) for depth in depths for kind in kinds):
        decoders.append(fit(kind, depth, crops, steps=steps, seed=seed + number, on_step=on_step))
        on_decoder(decoders[-1], psnr(decoders[-1], crops))
    return Simulator(decoders)


def save(path: str | os.PathLike, simulator: Simulator) -> None:
    """Write the decoders to a .safetensors file. Raises SimulatorError."""
    path = Path(path)
    description = json.dumps([{"kind": decoder.kind, "depth": decoder.depth} for decoder in simulator.decoders])
    state = {name: tensor.cpu().contiguous() for name, tensor in simulator.state_dict().items()}
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state, metadata={_HEADER_KEY: description}))
    except OSError as error:
        raise SimulatorError(f"decoders {path} cannot be written: {reason(error)}") from error


def load(path: str | os.PathLike) -> Simulator:
    """Inverse of :func:`save`, on the CPU. Raises SimulatorError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})[_HEADER_KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        simulator = Simulator([Autoencoder(item["kind"], item["depth"]) for item in description])
        simulator.load_state_dict(state)
    except OSError as error:
        raise SimulatorError(f"decoders {path} cannot be read: {reason(error)}") from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SimulatorError(f"{path} has no decoders that npr simulate saved ({reason(error)})") from error
    return simulator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it


def _groups(count: int) -> Iterator[slice]:
    return (slice(first, first + GROUP) for first in range(0, count, GROUP))


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"images must be (N, 3, H, W), uint8 or floating point in 0..1, got {images.dtype} of {tuple(images.shape)}"
        )


def _to_float(images: Tensor) -> Tensor:
    """float32 in 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _to_dtype(images: Tensor, dtype: torch.dtype) -> Tensor:
    images = images.clamp(0, 1)
    return images.mul(255).round().to(dtype) if dtype == torch.uint8 else images.to(dtype)
