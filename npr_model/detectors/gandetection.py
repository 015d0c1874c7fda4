"""GANDetection: Mandelli et al., "Detecting GAN-generated images by orthogonal training of multiple CNNs"
(ICIP 2022)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.layers.efficientnet import EfficientNet
from npr_model.detectors.layers.mirroring import mirrored

PATCH = 128  # side, in pixels
BLOCK = 8  # of JPEG; patches begin at whole blocks
MOST = 14  # patches along a side


class GANDetection(PixelNetwork):
    """Five EfficientNet-B4 networks that score patches of 128x128 pixels.

    (N, 3, H, W) -> (N, 1). 87,752,045 parameters. A member's logit of an image is the largest of its patches' logits if
    that is positive, else the smallest one; the image's logit is the mean over the members. Both rules are those of the
    authors' ``gan_vs_real_detector.py``, with the one logit of a patch in place of two scores. Each patch is trained on
    its own.

    The members are trained "orthogonally", as the authors do: each has a training set of its own, with other generators
    and other contents. The authors made five such data sets. Here the groups of one training set are dealt out
    (:func:`npr_model.training.division.divided`), and each image of a batch trains the member that it was dealt to.

    Departures from the authors: The members' training sets differ in compression only if the groups do. Patches lie
    side by side from edge to edge, with the least overlap, where the authors take about 200 overlapping ones; an image
    has at most 14 x 14, and up to 7 pixels at its right and lower edge are left out. All members score the same
    patches, which begin at multiples of 8 pixels; the authors' first member scores patches at random positions. Sides
    shorter than a patch are extended by mirroring. Weights start at random, not from ImageNet. The training was written
    from the paper's abstract and from knowledge of the method, without the paper's text and without code of the
    authors, who published that of scoring only.
    """

    detector, paper_name, training_sets = "gandetection", "GANDetection", 5

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(EfficientNet() for _ in range(self.training_sets))

    def forward(self, images: Tensor) -> Tensor:
        patches = _patches(self.normalised(images))
        scores = []
        for member in self.members:
            logits = torch.cat([member(patch) for patch in patches], 1)
            largest, smallest = logits.amax(1, keepdim=True), logits.amin(1, keepdim=True)
            scores.append(torch.where(largest > 0, largest, smallest))
        return torch.cat(scores, 1).mean(1, keepdim=True)

    def forward_training(
        self, images: Tensor, labels: Tensor, sets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """Return the (N, P) logits of all patches, those of each image by the member whose training set it is in.

        A member without images gets an empty batch: every process of a group must run and average the same members.
        ``sets``: the numbers of the training sets, (N,). Default: members take turns.
        """
        patches = torch.stack(_patches(self.normalised(images)), 1)
        if sets is None:
            sets = torch.arange(len(images), device=images.device) % len(self.members)
        own = [(sets == number).nonzero().flatten() for number in range(len(self.members))]
        logits = [
            member(patches[places].flatten(0, 1)).view(-1, patches.shape[1])
            for member, places in zip(self.members, own, strict=True)
        ]
        return torch.cat(logits)[torch.cat(own).argsort()], 0.0


def _patches(images: Tensor) -> list[Tensor]:
    """Cut (N, 3, H, W) images into patches (N, 3, PATCH, PATCH), in row order."""
    images = mirrored(images, PATCH)
    rows, columns = (_starts(side) for side in images.shape[2:])
    corners = itertools.product(rows, columns)
    return [images[:, :, top : top + PATCH, left : left + PATCH] for top, left in corners]


def _starts(side: int) -> list[int]:
    """Where patches begin along a side."""
    whole = side // BLOCK * BLOCK
    count = min(math.ceil(whole / PATCH), MOST)
    return [number * (whole - PATCH) // max(1, count - 1) // BLOCK * BLOCK for number in range(count)]
