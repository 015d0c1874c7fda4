"""What a detector must be to be trained, saved, evaluated and screened with as NPRDetector is."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from npr_model.errors import InputError
from npr_model.network import IMAGENET_MEAN, IMAGENET_STD


class Detector(nn.Module):
    """Logits that an image was generated: (N, 3, H, W) -> (N, 1), for any H and W of at least ``grid_size``.

    uint8 images are raw pixels; floating point ones are taken as normalised by ImageNet's mean and deviation. In
    training mode a detector may return a logit for each of P patches, (N, P), each of which is then trained.

    A class of it has a ``detector``, its name in configs and checkpoints; ``in_the_paper``, its name in the tables;
    ``grid_size``, of which a view leaves whole cells; and it is ``fitted`` in closed form (see
    :class:`npr_model.fitter.Fitter`), not by gradient descent.
    """

    detector: ClassVar[str]
    in_the_paper: ClassVar[str]
    grid_size: ClassVar[int] = 2
    fitted: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        constants = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        for name, values in constants.items():
            self.register_buffer(f"pixel_{name}", torch.tensor(values).view(3, 1, 1), persistent=False)

    def unit_pixels(self, images: Tensor) -> Tensor:
        """``images`` between 0 and 1, in floating point."""
        if not images.is_floating_point():
            return images.to(self.pixel_mean.dtype) / 255
        return images * self.pixel_std + self.pixel_mean

    def normalised(self, images: Tensor) -> Tensor:
        """``images`` with ImageNet's mean and deviation taken out, in floating point."""
        if images.is_floating_point():
            return images
        return (self.unit_pixels(images) - self.pixel_mean) / self.pixel_std

    def for_inference(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A frozen copy that gives float32 logits; ``dtype`` as for ``torch.autocast``, float32 where it is None.

        Raises InputError for int8.
        """
        if dtype == torch.int8:
            raise InputError(f"the detector {self.detector} cannot be had in int8; give float32 or bfloat16")
        return FrozenDetector(self, dtype or torch.float32)


class FrozenDetector(nn.Module):
    """A copy of ``detector`` in evaluation mode, without gradients."""

    def __init__(self, detector: Detector, dtype: torch.dtype) -> None:
        super().__init__()
        self.detector, self.dtype = copy.deepcopy(detector), dtype
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.detector(images).float()
