"""The `cuda` backend: the CUDA C++ kernels under csrc/cuda, for the stem in the network's own geometry.

Only the stem and what trains it; the map and the convolution as such are for the other backends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npr_kernels.backends import extension

STEMS = ("npr_stem", "npr_batch_norm_stem")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_CHANNELS = 128


def _missing() -> str | None:
    """Why there are no CUDA kernels in the extension, None if there are."""
    if extension.FAILURE:
        return extension.FAILURE
    if torch._C._dispatch_has_kernel_for_dispatch_key("npr_kernels::npr_stem", "CUDA"):
        return None
    info = extension.build_info() or {}
    return f"the compiled extension has no CUDA kernels: {info.get('cuda') or 'it was built without them'}"


MISSING = _missing()  # found once: a graph that is traced may not ask


def refusal(call) -> str | None:
    """Why this backend cannot serve ``call``, or None if it can."""
    if MISSING:
        return MISSING
    if call.operator not in STEMS:
        return f"it serves only the stem, not {call.operator}"
    if call.device != "cuda":
        return f"it serves CUDA tensors, x is on {call.device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    for name, dtype in (("x", call.x_dtype), ("weight", call.weight_dtype)):
        if dtype not in DTYPES and not (name == "x" and dtype == torch.uint8):
            return f"it has no kernel for {name} of {dtype}"
    if call.grid_size != 2 or not isinstance(call.anchor, int):
        return f"it serves grid_size 2 with an anchor index, not {call.grid_size} with {call.anchor!r}"
    geometry = call.geometry
    if geometry is None:
        return None
    if geometry.channels != 3:
        return f"it serves images of 3 channels, x has {geometry.channels}"
    if geometry.out_channels % 16 or geometry.out_channels > MOST_CHANNELS:
        return f"it serves multiples of 16 up to {MOST_CHANNELS} out_channels, not {geometry.out_channels}"
    found = (geometry.kernel, geometry.stride, geometry.padding)
    if found != ((3, 3), (2, 2), (1, 1)):
        return "it serves kernel 3, stride 2 and padding 1, not kernel {}, stride {} and padding {}".format(*found)
    return None


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, *convolution) -> Tensor:
    return torch.ops.npr_kernels.npr_stem(x, *_contiguous(weight, bias), *convolution, weight.dtype)


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, *convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_argmax(x, *_contiguous(weight, bias), *convolution, weight.dtype)


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: Sequence[int], *convolution
) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_grad_weight(grad, argmax, x, kernel, *convolution)


def npr_moments(x: Tensor, kernel: Sequence[int], *convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_moments(x, kernel, *convolution)


def _contiguous(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]
