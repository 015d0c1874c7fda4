"""The interface of a detector, on which training, checkpoints, evaluation and screening rely."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from npr_model.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


class DetectorNetwork(nn.Module):
    """A network that gives the logit that an image was generated: (N, 3, H, W) -> (N, 1), H and W >= ``grid_size``.

    uint8 images are raw pixels. Floating point images are already normalised by ImageNet's mean and standard deviation.
    In training mode a detector may return one logit for each of P patches, (N, P); each patch is then trained.

    Class attributes:
        detector: Name in configs and checkpoints.
        paper_name: Name in the paper's tables.
        architecture: Constructor arguments that a checkpoint stores; each is also an attribute.
        joins: The detectors that each of the networks it joins may have, by the constructor argument that names its
            checkpoint. The networks come first among the constructor's arguments. Empty for a detector with weights of
            its own.
        grid_size: Views keep whole cells of this side.
        fitted: Whether it is fitted in closed form (:class:`npr_model.training.fitter.Fitter`), not by gradient
            descent.
        training_sets: Number of its members that each learn from images of their own. If it is above 1, the training
            set is divided (:func:`npr_model.training.division.divided`), and ``forward_training`` gets a third
            argument: the number of each image's training set, (N,) int64.

    Attributes:
        backend: Backend of :mod:`npr_kernels`; None for the automatic choice. Used by NPR only.
        activation_steps: Quantisation scales for int8, by layer. Empty where none were measured.
    """

    detector: ClassVar[str]
    paper_name: ClassVar[str]
    architecture: ClassVar[tuple[str, ...]] = ()
    joins: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    grid_size: int = 2
    fitted: ClassVar[bool] = False
    training_sets: ClassVar[int] = 1

    backend: str | None = None
    activation_steps: Mapping[str, Tensor] = MappingProxyType({})

    def check_ready(self) -> None:
        """Raise InputError if something that the network needs is not installed. Called before the first image."""

    def forward_training(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits of a training batch with its (N, 1) labels, and a loss that is added to theirs.

        The second loss trains parts that the loss of the logits does not reach. Default: none.
        """
        return self(images), 0.0

    def set_activation_steps(self, steps: Mapping[str, Tensor]) -> None:
        """Set the quantisation scales. Raises ValueError if they do not fit this network."""
        if steps:
            raise ValueError(f"the detector {self.detector} has no activation steps")


class JoinedNetwork(DetectorNetwork):
    """A detector that joins the networks of other checkpoints, whose names it stores.

    Attributes:
        parts: The networks, in the order of ``joins``. They are not among its own weights.
    """

    parts: tuple[DetectorNetwork, ...]

    def check_ready(self) -> None:
        for part in self.parts:
            part.check_ready()

    def check_activation_steps(self) -> None:
        """Raise InputError if an NPR part has no quantisation scales, which int8 needs."""
        for argument, part in zip(self.joins, self.parts, strict=True):
            if isinstance(part, JoinedNetwork):
                part.check_activation_steps()
            elif part.detector == "npr" and not part.activation_steps:
                raise InputError(
                    f"int8 needs parts with activation steps, and {getattr(self, argument)} has none: run npr "
                    f"calibrate on it, then make the {self.detector} anew"
                )


class PixelNetwork(DetectorNetwork):
    """A detector that reads pixel values, where NPR reads only differences between them."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        constants = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        for name, values in constants.items():
            self.register_buffer(f"pixel_{name}", torch.tensor(values).view(3, 1, 1), persistent=False)

    def unit_pixels(self, images: Tensor) -> Tensor:
        """Return ``images`` as floats in 0 .. 1."""
        if not images.is_floating_point():
            return images.to(self.pixel_mean.dtype) / 255
        return images * self.pixel_std + self.pixel_mean

    def normalised(self, images: Tensor) -> Tensor:
        """Return ``images`` as floats, normalised by ImageNet's mean and standard deviation."""
        if images.is_floating_point():
            return images
        return (self.unit_pixels(images) - self.pixel_mean) / self.pixel_std
