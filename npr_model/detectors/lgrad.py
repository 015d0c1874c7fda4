"""LGrad: Tan et al., "Learning on gradients: generalized artifacts representation for GAN-generated images detection"
(CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.cnndetection import CNNDetection
from npr_model.detectors.layers.discriminator import Discriminator
from npr_model.detectors.layers.stylegan_discriminator import StyleGANDiscriminator

_UP_SAMPLINGS = ("nearest", "bilinear", "bicubic")


class LGrad(PixelNetwork):
    """A ResNet-50 on the gradients of a discriminator's output with respect to the image.

    With the discriminator D (the paper's transformation model) and an image x, the gradient G = dD(x) / dx is scaled to
    0 .. 1 by its least and largest value over all pixels and channels, as in the authors' ``gen_imggrad.py``, and
    classified like an image. 23,582,226 parameters.

    ``pretrained``: D is the discriminator of a StyleGAN, as the authors' is. Images are resized to its 256 x 256
    pixels, as they do, and it is never trained. 46,562,434 parameters. Its weights come from a file that the config
    field ``discriminator`` names, and a checkpoint holds them. The authors' file
    ``karras2019stylegan-bedrooms-256x256_discriminator.pth`` was not at hand: its names and shapes are those of the
    code that they load it with, and were tested with random weights.

    Otherwise D is a small one, which is trained along with the classifier. It learns to tell the photographs of the
    training set from the same photographs after halving and up-sampling (nearest, bilinear or bicubic), by the hinge
    loss. It never sees the generated images of the training set. The classifier's loss does not change D. Gradients are
    computed at the image's own size.

    Departures from the authors, also with ``pretrained``: Resizing is bilinear with antialiasing, as theirs, but does
    not round to 8 bits, and neither are gradients rounded. They compute the gradients of whole images and crop these;
    here a crop is resized like an image. The ResNet-50 starts from random weights, not ImageNet's.

    Args:
        pretrained: As above.

    Raises:
        ValueError: ``pretrained`` is not a boolean.
    """

    detector, paper_name = "lgrad", "LGrad"
    architecture = ("pretrained",)

    discriminator: Discriminator | StyleGANDiscriminator

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        if not isinstance(pretrained, bool):
            raise ValueError(f"pretrained must be true or false, got {pretrained!r}")
        self.pretrained = pretrained
        self.discriminator = StyleGANDiscriminator().requires_grad_(False) if pretrained else Discriminator()
        self.classifier = CNNDetection()

    def gradients(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W) gradients, scaled to 0 .. 1, without a graph to the discriminator's weights.

        Their size is 256 x 256 if the discriminator is pretrained.
        """
        # Scoring runs in inference mode, where autograd is off.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = self.unit_pixels(images).detach()
            if isinstance(self.discriminator, StyleGANDiscriminator):
                size = (self.discriminator.side, self.discriminator.side)
                if pixels.shape[2:] != size:
                    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
                pixels = 2 * pixels - 1
            pixels.requires_grad_()
            (gradient,) = torch.autograd.grad(self.discriminator(pixels).sum(), pixels)
        gradient = gradient + 0 * pixels.detach()  # a leaky ReLU has a finite slope at NaN; its score must not be one
        low, high = (extreme((1, 2, 3), keepdim=True) for extreme in (gradient.amin, gradient.amax))
        return (gradient - low) / (high - low).clamp(min=torch.finfo(gradient.dtype).tiny)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((self.gradients(images) - self.pixel_mean) / self.pixel_std)

    def forward_training(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits, and the hinge loss of the discriminator on the photographs among the images.

        A pretrained discriminator has no loss.
        """
        if self.pretrained:
            return self(images), 0.0
        pixels = self.unit_pixels(images)
        mode = _UP_SAMPLINGS[int(torch.randint(len(_UP_SAMPLINGS), ()))]
        rebuilt = F.interpolate(F.avg_pool2d(pixels, 2), pixels.shape[2:], mode=mode)
        losses = F.relu(1 - self.discriminator(pixels)) + F.relu(1 + self.discriminator(rebuilt))
        return self(images), (losses * (labels == 0)).mean()
