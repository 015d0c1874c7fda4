"""Layers for PyTorch networks, built on :mod:`npr_kernels.functional`."""

from __future__ import annotations

import copy
import gc
import math
import types
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import has_torch_function_unary

from npr_kernels import arguments, functional
from npr_kernels.distributed import SyncBatchNorm
from npr_kernels.reference import Anchor


class NPRConv2d(nn.Module):
    """NPR and a 2-d convolution in one pass: (N, C, H, W) -> (N, O, H_out, W_out).

    This is :func:`npr_kernels.npr_conv2d` as a module, with the same arguments. The parameters are ``weight``
    (O, C, KH, KW) and ``bias`` (O,), initialised as in ``torch.nn.Conv2d``.

    Args:
        in_channels, out_channels: C and O.
        kernel_size: int or (height, width).
        bias: Whether there is a bias.
        pixel_std: Standard deviation of each channel for pixels in 0 .. 1; uint8 images are normalised with it. None
            uses raw pixels in 0 .. 255. Float images must be normalised already.
        stride, padding, grid_size, anchor, scale, edge, backend: As in :func:`npr_kernels.npr_conv2d`.
        device, dtype: Of the parameters.
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
        scale: float | Sequence[float] = 2 / 3,
        pixel_std: Sequence[float] | None = None,
        edge: str = "trim",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.grid_size, self.anchor = arguments.grid(grid_size, anchor)
        if edge not in arguments.EDGES:
            raise ValueError(f'edge must be "trim" or "error", got {edge!r}')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = arguments.pair("kernel_size", kernel_size, 1)
        self.stride = arguments.pair("stride", stride, 1)
        self.padding = arguments.pair("padding", padding, 0)
        self.edge, self.backend = edge, backend
        factors = arguments.scale_factors(scale, None, in_channels)
        self.scale = factors if len(factors) > 1 else factors[0]
        self.pixel_std = None if pixel_std is None else arguments.standard_deviations(pixel_std, in_channels)
        self.weight = nn.Parameter(
            torch.empty((out_channels, in_channels, *self.kernel_size), device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters as ``torch.nn.Conv2d``: uniform, at most 1 / sqrt(fan-in) in magnitude."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def options(self) -> dict:
        """Keyword arguments of the functional operators."""
        names = "stride", "padding", "grid_size", "anchor", "scale", "pixel_std", "edge", "backend"
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        return functional.npr_conv2d(x, self.weight, self.bias, **self.options)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, grid_size={self.grid_size}, anchor={self.anchor!r}"
        )


def stem_forward(x: Tensor, conv: nn.Module, bn: nn.Module) -> Tensor:
    """Compute ``max_pool2d(relu(bn(conv(x))), 3, 2, 1)``: (N, C, H, W) -> (N, O, H_pooled, W_pooled).

    It is one fused pass in evaluation mode and two in training (:func:`npr_kernels.npr_batch_norm_stem`). The batch
    norm's mode, running statistics and ``momentum`` (None: cumulative average) have their usual effect. An
    ``nn.SyncBatchNorm`` uses the statistics of its process group, on any device.

    The layers run one by one if fusing them would leave something out: if ``conv`` is no :class:`NPRConv2d`, if ``bn``
    is another normalisation, if one of them has hooks, a parametrisation (pruning, weight or spectral normalisation) or
    its own forward method, or if x is not a plain tensor (tracing by ``torch.fx``).
    """
    traced = type(x) is not Tensor and has_torch_function_unary(x)  # which is also true of any tensor in torch.device()
    if traced or not (_is_fusible(conv) and _is_fusible(bn)):
        return F.max_pool2d(F.relu(bn(conv(x))), 3, stride=2, padding=1)
    return _fused_stem(x, cast(NPRConv2d, conv), cast(nn.BatchNorm2d, bn))


def _fused_stem(x: Tensor, conv: NPRConv2d, bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> Tensor:
    momentum: float | Tensor = bn.momentum or 0.0
    tracked = bn.training and bn.track_running_stats
    if tracked and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            momentum = bn.num_batches_tracked.double().reciprocal()
    return functional.npr_batch_norm_stem(
        x, conv.weight, conv.bias, bn.weight, bn.bias,
        bn.running_mean if tracked or not bn.training else None,
        bn.running_var if tracked or not bn.training else None,
        training=bn.training or bn.running_mean is None, momentum=momentum, eps=bn.eps,
        process_group=_process_group(bn), **conv.options,
    )  # fmt: skip


def _is_fusible(layer: nn.Module) -> bool:
    """Return whether the fused stem does everything that calling ``layer`` would do."""
    plain = NPRConv2d.forward, nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward
    if type(layer).forward not in plain or "forward" in vars(layer):
        return False
    return not is_parametrized(layer) and not _has_hooks(layer)


def _has_hooks(layer: nn.Module) -> bool:
    """Return whether calling ``layer`` runs hooks: its own, or those registered for all modules."""
    own = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    )  # fmt: skip
    return any(own) or (not torch.compiler.is_compiling() and nn.modules.module._has_any_global_hook())


def _process_group(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> dist.ProcessGroup | None:
    """Return the processes whose batches are normalised together, or None if each is normalised alone."""
    if not (isinstance(bn, nn.SyncBatchNorm) and bn.training and dist.is_available() and dist.is_initialized()):
        return None
    return bn.process_group or dist.group.WORLD


class NPRStem(nn.Module):
    """NPRConv2d, BatchNorm2d, ReLU and a 3x3 max-pool with stride 2: (N, C, H, W) -> (N, O, H_pooled, W_pooled).

    These are the first layers of the authors' network as one module. The arguments are those of :class:`NPRConv2d`, and
    ``eps`` and ``momentum`` of the batch norm. The sub-modules are named ``conv`` and ``bn``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        kernel_size: int | tuple[int, int] = 3,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.conv = NPRConv2d(in_channels, out_channels, kernel_size, **options)
        weight = self.conv.weight
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return stem_forward(x, self.conv, self.bn)


def replace_first_conv(
    model: nn.Module,
    *,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float | Sequence[float] = 2 / 3,
    pixel_std: Sequence[float] | None = None,
    edge: str = "trim",
    backend: str | None = None,
) -> nn.Module:
    """Return a copy of ``model`` whose first ``nn.Conv2d`` is an :class:`NPRConv2d` with the same weights.

    The network then sees NPR instead of pixels. The first layer is the one that was registered first. In the copy this
    layer becomes an NPRConv2d in place: it keeps its parameters, buffers and hooks, and everything in the model that
    refers to it then refers to the NPRConv2d.

    Args:
        model: Any network. It is not changed.
        grid_size, anchor, scale, pixel_std, edge, backend: As in :class:`NPRConv2d`.

    Raises:
        ValueError: There is no Conv2d; or the first one has features that NPRConv2d lacks (groups, dilation, another
            padding mode than zeros, a subclass, its own forward method); or the model cannot be copied, or keeps a
            method of the layer.
    """
    try:
        model = copy.deepcopy(model)
    except RuntimeError as error:  # the old weight_norm and spectral_norm keep a tensor with a graph
        raise ValueError(f"{type(model).__name__} cannot be copied: {error}") from error
    name, old = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if old is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d to replace")
    described = f"the first Conv2d ({name or 'the model itself'})"
    if type(old) is not nn.Conv2d:  # a subclass may pad or rescale differently
        raise ValueError(f"{described} is a {type(old).__name__}, not a plain Conv2d")
    if "forward" in vars(old):
        raise ValueError(f"{described} has a forward method of its own")
    for attribute, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if getattr(old, attribute) != wanted:
            raise ValueError(f"{described} has {attribute}={getattr(old, attribute)!r}")
    for method in gc.get_referrers(old):
        if isinstance(method, types.MethodType) and method.__func__ in vars(type(old)).values():
            raise ValueError(f"the model keeps {method.__name__} of {described}, which would convolve without NPR")
    kernel, stride = cast(tuple[int, int], old.kernel_size), cast(tuple[int, int], old.stride)
    new = NPRConv2d(
        old.in_channels, old.out_channels, kernel, stride=stride, padding=_symmetric_padding(old),
        bias=old.bias is not None, grid_size=grid_size, anchor=anchor, scale=scale, pixel_std=pixel_std, edge=edge,
        backend=backend, device="meta",
    )  # fmt: skip
    settings = {key: value for key, value in vars(new).items() if not key.startswith("_") and key != "training"}
    old.__class__ = NPRConv2d  # type: ignore[assignment]  # so that whatever holds the layer holds the new one
    vars(old).update(settings)
    return model


def _symmetric_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        if any(k % 2 == 0 for k in conv.kernel_size):
            raise ValueError(f'the first Conv2d has padding="same" with an even kernel of {conv.kernel_size}')
        return conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
    return cast(tuple[int, int], conv.padding)
