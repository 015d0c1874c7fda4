"""LGrad: Tan et al., "Learning on gradients: generalized artifacts representation for GAN-generated images detection"
(CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.cnndetection import CNNDetection
from npr_model.detectors.layers.discriminator import Discriminator

_UP_SAMPLINGS = ("nearest", "bilinear", "bicubic")


class LGrad(PixelNetwork):
    """A ResNet-50 on the gradients of a discriminator's output with respect to the image.

    With the discriminator D (the paper's transformation model) and an image x, the gradient G = dD(x) / dx is scaled to
    0 .. 1 by its least and largest value over all pixels and channels, as in the authors' ``gen_imggrad.py``, and
    classified like an image. 23,582,226 parameters.

    Departures from the authors: D is not the discriminator of a ProGAN or StyleGAN that was trained beforehand. It is a
    small one, which is trained along with the classifier. It learns to tell the photographs of the training set from
    the same photographs after halving and up-sampling (nearest, bilinear or bicubic), by the hinge loss. It never sees
    the generated images of the training set. The classifier's loss does not change D. Gradients are computed at the
    image's own size, not after resizing to 256 x 256, and are not rounded to 8 bits. The ResNet-50 starts from random
    weights, not ImageNet's.
    """

    detector, paper_name = "lgrad", "LGrad"

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = Discriminator()
        self.classifier = CNNDetection()

    def gradients(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W) gradients, scaled to 0 .. 1, without a graph to the discriminator's weights."""
        # Scoring runs in inference mode, where autograd is off.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = self.unit_pixels(images).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.discriminator(pixels).sum(), pixels)
        gradient = gradient + 0 * pixels.detach()  # a leaky ReLU has a finite slope at NaN; its score must not be one
        low, high = (extreme((1, 2, 3), keepdim=True) for extreme in (gradient.amin, gradient.amax))
        return (gradient - low) / (high - low).clamp(min=torch.finfo(gradient.dtype).tiny)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((self.gradients(images) - self.pixel_mean) / self.pixel_std)

    def forward_training(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits, and the hinge loss of the discriminator on the photographs among the images."""
        pixels = self.unit_pixels(images)
        mode = _UP_SAMPLINGS[int(torch.randint(len(_UP_SAMPLINGS), ()))]
        rebuilt = F.interpolate(F.avg_pool2d(pixels, 2), pixels.shape[2:], mode=mode)
        losses = F.relu(1 - self.discriminator(pixels)) + F.relu(1 + self.discriminator(rebuilt))
        return self(images), (losses * (labels == 0)).mean()
