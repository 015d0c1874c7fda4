"""SelfBland: Shiohara and Yamasaki, "Detecting deepfakes with self-blended images" (CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.layers.efficientnet import EfficientNet
from npr_model.detectors.layers.self_blended_images import self_blended


class SelfBland(PixelNetwork):
    """An EfficientNet-B4 that learns to tell photographs from the same photographs blended with themselves.

    (N, 3, H, W) -> (N, 1). 17,550,409 parameters. A self-blended image joins two versions of one photograph along the
    edge of a mask (:mod:`npr_model.detectors.layers.self_blended_images`, figure 3 of the paper). The generated images
    of the training set are never seen: in a training batch, a self-blended image takes the place of each of them. The
    logit is therefore that an image was blended, and the paper's subject is swapped faces. The network finds blending
    in any picture, and other generated images only as far as their traces are similar.

    Departures from the authors: The mask is a random convex polygon anywhere in the picture, as the hull of a face
    needs a model of landmarks. Its soft edge is a linear ramp instead of two Gaussian filters, and it has no elastic
    deformation. The hue and saturation keep their values (the authors' limits of 0.3 are less than one step of 8 bits).
    The source is extended by mirroring, not by zeros. A blend is augmented independently of the photograph in the same
    batch, and is not compressed again: JPEG of the training config is applied to the photograph before. There is no
    cropping to a face, Adam takes the place of SAM, and weights start at random, not from ImageNet.
    """

    detector, paper_name = "selfbland", "SelfBland"

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalised(images))

    def forward_training(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits of the photographs, and of self-blended ones in place of the generated images.

        Without a photograph in the batch, the logits are 0 and train nothing. The network gets an empty batch then:
        every process of a group must run it, as batch norm joins their batches.
        """
        if not (labels == 0).any():
            return self(images[:0]).sum().expand(len(images), 1), 0.0
        return self(self.training_images(images, labels)), 0.0

    @torch.no_grad()
    def training_images(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W), normalised: targets of the photographs, and blends in the other places."""
        real = labels.flatten() == 0
        places, photographs = torch.arange(len(images), device=images.device), real.nonzero().flatten()
        base = torch.where(real, places, photographs[places % len(photographs)])
        with torch.autocast(images.device.type, enabled=False):
            target, blended = self_blended(self.unit_pixels(images[base]))
            return (torch.where(real.view(-1, 1, 1, 1), target, blended) - self.pixel_mean) / self.pixel_std
