"""Small convolutional autoencoders, one for each way in which generators enlarge their feature maps.

An autoencoder trained on photographs reproduces them with the traces of its decoder's up-sampling: a fake without a GAN
(Zhang, Karaman and Chang 2019, "Detecting and Simulating Artifacts in GAN Fake Images"). As in that paper, a
discriminator makes the output as sharp as photographs. Otherwise a detector would learn that soft images are generated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.simulation.history import resample

KINDS = ("nearest", "bilinear", "bicubic", "sinc", "transposed", "subpixel")
MAX_DEPTH = 4

# Channels of the feature maps at full resolution, and at lower resolutions, where they cost less.
_WIDTH, _LOWER_WIDTH = 16, 32

# Weight of the discriminator in a decoder's loss; the mean squared error is about 0.001.
_ADVERSARIAL = 0.01


def up_sampling(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    """Return a layer (N, in_channels, H, W) -> (N, out_channels, 2H, 2W), as in the networks named here.

    - nearest, bilinear, bicubic: interpolation, then a 3x3 convolution (Progressive GAN, StyleGAN, latent diffusion);
    - sinc: twelve taps of a windowed sinc, then a 3x3 convolution (StyleGAN3);
    - transposed: 3x3 transposed convolution with stride 2, whose windows overlap unevenly (CycleGAN);
    - subpixel: 3x3 convolution to four times the channels, then pixel shuffle (super-resolution).
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 3, 2, padding=1, output_padding=1)
    if kind == "subpixel":
        return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1), nn.PixelShuffle(2))
    up = Sinc() if kind == "sinc" else nn.Upsample(scale_factor=2, mode=kind)
    return nn.Sequential(up, nn.Conv2d(in_channels, out_channels, 3, padding=1))


class Sinc(nn.Module):
    """(N, C, H, W) -> (N, C, 2H, 2W), nearly without aliasing."""

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, (2 * x.shape[2], 2 * x.shape[3]), "lanczos")


class Encoder(nn.Module):
    """(N, 3, H, W) -> (N, 3 + latents, H / 2**depth, W / 2**depth).

    The first three channels are the image scaled down; the latents hold what is lost by that.
    """

    def __init__(self, depth: int, latents: int) -> None:
        super().__init__()
        self.depth = depth
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(12, _LOWER_WIDTH, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(_LOWER_WIDTH, _LOWER_WIDTH, 4, 2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(_LOWER_WIDTH, latents, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.avg_pool2d(x, 2**self.depth), self.layers(x)], 1)


class Stage(nn.Module):
    """Up-sampling by 2 of the features and the image, followed by convolutions.

    The image is up-sampled and added to at each stage, as in StyleGAN2's generator.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.up = up_sampling(kind, _LOWER_WIDTH, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.up_image = up_sampling(kind, 3, 3)
        self.to_image = nn.Conv2d(width, 3, 3, padding=1)
        _interpolate(self.up_image)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.up(features))
        features = F.relu(features + self.conv(features))
        return features, self.up_image(image) + self.to_image(features)


@torch.no_grad()
def _interpolate(layer: nn.Module) -> None:
    """Initialise the up-sampling of the image as plain interpolation, so that training starts near a photograph."""
    conv = next(module for module in layer.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d))
    conv.weight.zero_()
    if conv.bias is not None:
        conv.bias.zero_()
    if isinstance(conv, nn.ConvTranspose2d):
        triangle = torch.tensor([0.5, 1.0, 0.5])
        for channel in range(3):
            conv.weight[channel, channel] = triangle[:, None] * triangle
    else:
        copies = len(conv.weight) // 3  # 4 before a pixel shuffle
        for channel in range(len(conv.weight)):
            conv.weight[channel, channel // copies, 1, 1] = 1


class Autoencoder(nn.Module):
    """(N, 3, H, W) floats in 0..1 to the same, without what the latents cannot hold, with the decoder's traces.

    Args:
        kind: One of KINDS.
        depth: Number of up-samplings by 2, 1 .. MAX_DEPTH. H and W must be multiples of 2**depth. The latents have a
            third of the image's numbers at any depth.
    """

    def __init__(self, kind: str, depth: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of up-sampling {kind!r}: use one of {', '.join(KINDS)}")
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"depth must be in 1 .. {MAX_DEPTH}, got {depth}")
        super().__init__()
        self.kind, self.depth = kind, depth
        latents = 4**depth
        self.encoder = Encoder(depth, latents)
        self.first = nn.Conv2d(3 + latents, _LOWER_WIDTH, 3, padding=1)
        widths = [_LOWER_WIDTH] * (depth - 1) + [_WIDTH]
        self.stages = nn.ModuleList(Stage(kind, width) for width in widths)

    @property
    def factor(self) -> int:
        """Image pixels per latent, along each side."""
        return 2**self.depth

    def forward(self, x: Tensor) -> Tensor:
        latent = self.encoder(x - 0.5)
        features, image = F.relu(self.first(latent)), latent[:, :3]
        for stage in self.stages:
            features, image = stage(features, image)
        return image + 0.5


class PatchDiscriminator(nn.Sequential):
    """(N, 3, H, W) floats in 0..1 -> (N, 1, H/2, W/2).

    Positive where windows of 11 pixels look like a photograph.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 1, 1),
        )

    def step(self, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor) -> None:
        """One optimizer step on the hinge loss (Lim and Ye 2017)."""
        loss = F.relu(1 - self(real)).mean() + F.relu(1 + self(fake.detach())).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def fit(
    kind: str,
    depth: int,
    crops: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Autoencoder:
    """Train an autoencoder on random windows of ``crops``, on their device.

    Args:
        kind, depth: As in :class:`Autoencoder`.
        crops: (N, 3, H, W) uint8, sides of 32 or more.
        steps: Optimizer steps; 300 take 14 to 25 s on one CPU core.
        batch_size, learning_rate: Of Adam with one cycle of the learning rate.
        seed: Random seed.
        on_step: Called after every step.

    The loss is the mean squared error, with a discriminator in the second half of the steps. On CUDA the gradient of
    bicubic interpolation has no deterministic kernel.
    """
    side = min(64, *crops.shape[2:]) // 16 * 16
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, discriminator = Autoencoder(kind, depth), PatchDiscriminator()
    for network in (model, discriminator):
        # torch's type hints leave memory_format out.
        network.to(crops.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    judge = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for step in range(steps):
        x = _windows(crops, batch_size, side, generator)
        decoded = model(x)
        loss = F.mse_loss(decoded, x)
        if step >= steps // 2:
            discriminator.step(judge, x, decoded)
            loss = loss - _ADVERSARIAL * discriminator(decoded).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step()
    return model.eval()


@torch.no_grad()
def psnr(model: Autoencoder, crops: Tensor, limit: int = 32) -> float:
    """Return the peak signal-to-noise ratio in dB of up to ``limit`` uint8 crops after encoding and decoding."""
    height, width = (side // model.factor * model.factor for side in crops.shape[2:])
    x = crops[:limit, :, :height, :width].float() / 255
    error = F.mse_loss(model(x).clamp(0, 1), x)
    return -10 * torch.log10(error).item()


def _windows(crops: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return random windows, (count, 3, side, side) floats in 0..1 with channels_last strides."""
    height, width = crops.shape[2:]
    places = zip(
        torch.randint(len(crops), (count,), generator=generator).tolist(),
        torch.randint(height - side + 1, (count,), generator=generator).tolist(),
        torch.randint(width - side + 1, (count,), generator=generator).tolist(),
        strict=True,
    )
    windows = torch.stack([crops[i, :, top : top + side, left : left + side] for i, top, left in places])
    return (windows.float() / 255).contiguous(memory_format=torch.channels_last)
