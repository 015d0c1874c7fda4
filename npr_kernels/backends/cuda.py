"""The `cuda` backend: the CUDA C++ kernels of csrc/cuda, for the stem with the geometry of the authors' network.

It serves only the stem and its training. Other backends serve the NPR map and the convolution alone.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from npr_kernels import capabilities, extension
from npr_kernels.backends.base import Call, Convolution
from npr_kernels.tracing import constant

NAME = "cuda"
DIFFERENTIABLE = False
EXAMPLE = Call("npr_stem", torch.device("cuda"), torch.float32, torch.float32, Convolution())
# Each takes another way through the kernels: strips of whole warpgroups, several strips, and more rows than the largest
# GPU has blocks.
SELF_TEST_SIZES: tuple[tuple[int, int], ...] = ((12, 128), (4, 144), (1100, 8))
STEMS = ("npr_stem", "npr_batch_norm_stem")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_CHANNELS = 128


def unsupported_reason(call: Call) -> str | None:
    """Return why this backend cannot serve ``call``, or None if it can."""
    if extension.CUDA_ERROR:
        return extension.CUDA_ERROR
    if call.plain_only:
        return f"it does not support {call.plain_only}"
    if call.operator not in STEMS:
        return f"it serves only the stem, not {call.operator}"
    if call.device.type != "cuda":
        return f"it serves CUDA tensors, x is on {call.device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    unbuilt = _unbuilt(call.device)
    if unbuilt:
        return unbuilt
    for name, dtype in (("x", call.x_dtype), ("weight", call.dtype)):
        if dtype not in DTYPES and not (name == "x" and dtype == torch.uint8):
            return f"it has no kernel for {name} of {dtype}"
    convolution = call.convolution
    if convolution.grid_size != 2 or not isinstance(convolution.anchor, int):
        return f"it serves grid_size 2 with an anchor index, not {convolution.grid_size} with {convolution.anchor!r}"
    if call.weight_shape is None:
        return None
    out_channels, channels, *kernel = call.weight_shape
    if channels != 3:
        return f"it serves images of 3 channels, x has {channels}"
    if out_channels % 16 or out_channels > MOST_CHANNELS:
        return f"it serves multiples of 16 up to {MOST_CHANNELS} out_channels, not {out_channels}"
    geometry = tuple(kernel), convolution.stride, convolution.padding
    if geometry != ((3, 3), (2, 2), (1, 1)):
        return "it serves kernel 3, stride 2 and padding 1, not kernel {}, stride {} and padding {}".format(*geometry)
    return None


@constant
def _unbuilt(device: torch.device) -> str | None:
    """Return why ``device`` cannot run the extension's code, or None if it can."""
    capability = capabilities.gpu_capability(device)
    if runs_on(capability, extension.CUDA_ARCHITECTURES):
        return None
    built, present = extension.CUDA_ARCHITECTURES.replace(";", ", "), "{}.{}".format(*capability)
    return f"it is built for compute capability {built}, and {device} has {present}: build it with TORCH_CUDA_ARCH_LIST"


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Return whether a GPU of ``capability`` runs code for one of ``architectures`` (as in TORCH_CUDA_ARCH_LIST).

    Machine code runs on its own version and on later minor versions, also with the suffix f. With the suffix a, it runs
    on its own version only. PTX runs on all later versions. Architectures with a name count as suitable, because torch
    knows the names and a launch would fail otherwise.
    """
    for architecture in re.split(r"[;\s]+", architectures):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
        if match is None:
            return True
        built = int(match[1]), int(match[2])
        if built == capability:
            return True
        if match[3] != "a" and built <= capability and (built[0] == capability[0] or match[4]):
            return True
    return False


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return torch.ops.npr_kernels.npr_stem(x, *_contiguous(weight, bias), *convolution, weight.dtype)


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_argmax(x, *_contiguous(weight, bias), *convolution, weight.dtype)


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_grad_weight(grad, argmax, x, kernel, *convolution)


def npr_moments(x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_moments(x, kernel, *convolution)


def _contiguous(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]
