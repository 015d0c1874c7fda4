"""Layers: drop-in modules on top of :mod:`npr_kernels.functional`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from npr_kernels import arguments, functional
from npr_kernels.reference import Anchor


class NPRConv2d(nn.Module):
    """NPR and a 2-d convolution in one pass: (N, C, H, W) -> (N, O, H_out, W_out).

    Float images are taken as already normalised. uint8 images are raw pixels: their NPR map is multiplied by
    ``scale / (255 * pixel_std[c])``, which equals normalising them first, since the means cancel. Parameters are named
    ``weight`` (O, C, KH, KW) and ``bias`` (O,) and initialised as in ``torch.nn.Conv2d``.

    ``kernel_size``, ``stride``, ``padding``: int or (height, width). ``pixel_std``: standard deviation of each
    channel for pixels in 0 .. 1, None for 1. The rest as in :func:`npr_kernels.npr_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 2,
        padding: int | tuple[int, int] = 1,
        bias: bool = False,
        grid_size: int = 2,
        anchor: Anchor = 0,
        scale: float = 2 / 3,
        pixel_std: Sequence[float] | None = None,
        edge: str = "trim",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments.check_grid(grid_size, anchor)
        if edge not in arguments.EDGES:
            raise ValueError(f'edge must be "trim" or "error", got {edge!r}')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = arguments.pair("kernel_size", kernel_size, 1)
        self.stride = arguments.pair("stride", stride, 1)
        self.padding = arguments.pair("padding", padding, 0)
        self.grid_size, self.anchor, self.edge, self.backend = grid_size, anchor, edge, backend
        self.scale = arguments.scale_factors(float(scale), in_channels)[0]
        self.pixel_std = tuple(map(float, pixel_std)) if pixel_std is not None else (1.0,) * in_channels
        if len(self.pixel_std) != in_channels or not all(0 < std < math.inf for std in self.pixel_std):
            raise ValueError(f"pixel_std must be {in_channels} positive numbers, got {pixel_std!r}")
        self.weight = nn.Parameter(
            torch.empty((out_channels, in_channels, *self.kernel_size), device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``torch.nn.Conv2d``: uniform within one over the square root of the fan-in."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def options(self, x: Tensor) -> dict:
        """Keyword arguments of the functional operators for an image of x's dtype."""
        scale = self.scale
        if x.dtype == torch.uint8:
            scale = tuple(self.scale / (255 * std) for std in self.pixel_std)
        return {
            "stride": self.stride,
            "padding": self.padding,
            "grid_size": self.grid_size,
            "anchor": self.anchor,
            "scale": scale,
            "edge": self.edge,
            "backend": self.backend,
        }

    def forward(self, x: Tensor) -> Tensor:
        return functional.npr_conv2d(x, self.weight, self.bias, **self.options(x))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, grid_size={self.grid_size}, anchor={self.anchor!r}"
        )


def stem_forward(x: Tensor, conv: NPRConv2d, bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> Tensor:
    """``max_pool2d(relu(bn(conv(x))), 3, 2, 1)``: (N, C, H, W) -> (N, O, H_pooled, W_pooled).

    One fused pass in evaluation mode, two in training (:func:`npr_kernels.npr_batch_norm_stem`). The batch norm's mode,
    running statistics and ``momentum`` (None: cumulative) count as in its own forward pass; an ``nn.SyncBatchNorm``
    takes its statistics over its process group, on any device.
    """
    momentum, tracked = bn.momentum or 0.0, bn.training and bn.track_running_stats
    if tracked and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            momentum = bn.num_batches_tracked.double().reciprocal()
    return functional.npr_batch_norm_stem(
        x, conv.weight, conv.bias, bn.weight, bn.bias,
        bn.running_mean if tracked or not bn.training else None,
        bn.running_var if tracked or not bn.training else None,
        training=bn.training or bn.running_mean is None, momentum=momentum, eps=bn.eps,
        process_group=_process_group(bn), **conv.options(x),
    )  # fmt: skip


def _process_group(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> dist.ProcessGroup | None:
    """The processes whose batches are normalised together, if there are others."""
    if not (isinstance(bn, nn.SyncBatchNorm) and bn.training and dist.is_available() and dist.is_initialized()):
        return None
    return bn.process_group or dist.group.WORLD


class NPRStem(nn.Module):
    """NPRConv2d + BatchNorm2d + ReLU + 3x3/2 max-pool: (N, C, H, W) -> (N, O, H_pooled, W_pooled).

    The first layers of the authors' network as one module, with the arguments of :class:`NPRConv2d` and
    ``eps`` and ``momentum`` of the batch norm. Sub-modules are named ``conv`` and ``bn``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        kernel_size: int | tuple[int, int] = 3,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **options,
    ) -> None:
        super().__init__()
        self.conv = NPRConv2d(in_channels, out_channels, kernel_size, **options)
        device_dtype = {"device": self.conv.weight.device, "dtype": self.conv.weight.dtype}
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, **device_dtype)

    def forward(self, x: Tensor) -> Tensor:
        return stem_forward(x, self.conv, self.bn)


def replace_first_conv(
    model: nn.Module,
    *,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float = 2 / 3,
    pixel_std: Sequence[float] | None = None,
    edge: str = "trim",
    backend: str | None = None,
) -> nn.Module:
    """A copy of ``model`` whose first ``nn.Conv2d`` (in registration order) is an :class:`NPRConv2d` of its weights.

    The network then sees NPR instead of pixels. Keywords as in :class:`NPRConv2d`. Raises ValueError if there is no
    Conv2d, or the first one has what NPRConv2d lacks: groups, dilation, or padding other than zeros.
    """
    model = copy.deepcopy(model)
    name, old = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if old is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d to replace")
    if type(old) is not nn.Conv2d:  # it may pad or rescale in a way of its own
        raise ValueError(
            f"the first Conv2d ({name or 'the model itself'}) is a {type(old).__name__}, not a plain Conv2d"
        )
    for attribute, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if getattr(old, attribute) != wanted:
            raise ValueError(
                f"the first Conv2d ({name or 'the model itself'}) has {attribute}={getattr(old, attribute)!r}"
            )
    new = NPRConv2d(
        old.in_channels,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        padding=_symmetric_padding(old),
        bias=old.bias is not None,
        grid_size=grid_size,
        anchor=anchor,
        scale=scale,
        pixel_std=pixel_std,
        edge=edge,
        backend=backend,
    )
    new.weight, new.bias = old.weight, old.bias
    new.train(old.training)
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return model


def _symmetric_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        if any(k % 2 == 0 for k in conv.kernel_size):
            raise ValueError(f'the first Conv2d has padding="same" with an even kernel of {conv.kernel_size}')
        return conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
    return conv.padding
