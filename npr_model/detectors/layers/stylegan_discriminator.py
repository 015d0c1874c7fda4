"""The discriminator of StyleGAN (Karras et al., CVPR 2019) for images of 256x256 pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 256
LAST_SIDE = 4  # of the maps before the linear layers
DEVIATION = 1e-4  # minibatch standard deviation of an image alone, the root of the epsilon 1e-8

_MAPS, _MOST_MAPS = 2**14, 512  # maps of side s have _MAPS / s channels, at most _MOST_MAPS
_SLOPE = 0.2  # of the leaky ReLU
_GAIN = math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """Tells photographs from generated images: (N, 3, 256, 256) pixels in -1 .. 1 -> (N, 1), larger for photographs.

    The state dict has the names and shapes of ``StyleGANDiscriminator`` in genforce, whose converter makes such files
    from those of StyleGAN's authors. Weights are scaled when they are used ("equalized learning rate"). For each of six
    sides, 256 to 8, there are two convolutions, the second one behind a blur and followed by a mean over 2x2. At 4x4
    there are one convolution and two linear layers. The layers ``input1`` to ``input6`` and the number ``lod`` served
    while the GAN grew to its full size. They are stored, and not used here. 23,052,353 parameters.

    Departure from genforce: the standard deviation over a batch, which is one channel at 4x4, is always that of an
    image alone, so that images do not affect each other. The authors of LGrad compute this, too, as they take one image
    at a time.
    """

    lod: Tensor
    input0: _Convolution

    def __init__(self) -> None:
        super().__init__()
        self.side = SIDE
        self.register_buffer("lod", torch.zeros(()))
        sides = [SIDE >> step for step in range(int(math.log2(SIDE // LAST_SIDE)) + 1)]
        for number, side in enumerate(sides):
            channels, fewer = _channels(side), _channels(side // 2)
            setattr(self, f"input{number}", _Convolution(3, channels, 1))
            if side > LAST_SIDE:
                setattr(self, f"layer{2 * number}", _Convolution(channels, channels))
                setattr(self, f"layer{2 * number + 1}", _Halving(channels, fewer))
        last = 2 * len(sides) - 2
        setattr(self, f"layer{last}", _Convolution(channels + 1, channels))
        setattr(self, f"layer{last + 1}", _Linear(channels * LAST_SIDE**2, fewer, _GAIN))
        setattr(self, f"layer{last + 2}", _Linear(fewer, 1, 1.0))
        self._last = last

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.leaky_relu(self.input0(pixels), _SLOPE)
        for number in range(self._last):
            x = F.leaky_relu(getattr(self, f"layer{number}")(x), _SLOPE)
        x = torch.cat([x, torch.full_like(x[:, :1], DEVIATION)], 1)
        x = F.leaky_relu(getattr(self, f"layer{self._last}")(x), _SLOPE)
        x = F.leaky_relu(getattr(self, f"layer{self._last + 1}")(x.flatten(1)), _SLOPE)
        return getattr(self, f"layer{self._last + 2}")(x)


class _Convolution(nn.Module):
    """A convolution that keeps height and width."""

    def __init__(self, before: int, after: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale = _GAIN / math.sqrt(before * kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scale * self.weight, self.bias, padding=self.weight.shape[2] // 2)


class _Halving(_Convolution):
    """A blur, a 3x3 convolution, and a mean over 2x2. The last two are one 4x4 convolution with stride 2."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.blur = _Blur(before)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.avg_pool2d(F.pad(self.scale * self.weight, (1, 1, 1, 1)), 2, 1)
        return F.conv2d(self.blur(x), weight, self.bias, stride=2, padding=1)


class _Blur(nn.Module):
    """The weights 1, 2, 1 along both sides, over their sum."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


class _Linear(nn.Module):
    def __init__(self, before: int, after: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale = gain / math.sqrt(before)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scale * self.weight, self.bias)


def _channels(side: int) -> int:
    return min(_MAPS // side, _MOST_MAPS)
