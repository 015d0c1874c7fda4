"""Which kernels run the residual blocks on a GPU. They prove themselves on a small case before they are used."""

from __future__ import annotations

import functools
import logging
import os

import torch

from npr_kernels.backends import proof
from npr_kernels.tolerance import allowed, error
from npr_kernels.trunk import gpu_bottleneck, hopper_bottleneck
from npr_kernels.trunk.blocks import BlockShape, Folded, Layers, composed

ENVIRONMENT_VARIABLE = "NPR_KERNELS_TRUNK"
_logger = logging.getLogger("npr_kernels")


def kernels_for(dtype: torch.dtype, device: torch.device, blocks: tuple[BlockShape, ...]) -> str | None:
    """Return which kernels serve a network of these ``blocks``, in order, on ``device``: "hopper", "triton" or None.

    Kernels that fail a small case are not used; that is logged once. The environment variable NPR_KERNELS_TRUNK limits
    the choice: "triton" excludes the CUDA C++ for Hopper, and "none" excludes all kernels.
    """
    limit = os.environ.get(ENVIRONMENT_VARIABLE, "hopper")
    if limit not in ("hopper", "triton", "none"):
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be hopper, triton or none, got {limit!r}")
    if limit == "none" or gpu_bottleneck.unsupported_reason(dtype, device) is not None:
        return None
    hopper = limit == "hopper" and hopper_bottleneck.unsupported_reason(dtype, device) is None
    try:
        if hopper and _sound(dtype, device, blocks, hopper=True):
            return "hopper"
        return "triton" if _sound(dtype, device, blocks, hopper=False) else None
    except torch.OutOfMemoryError:  # this is no fault of the kernels, so the next network tries them again
        _logger.warning("the fused residual blocks are not used: %s has no memory left to try them", device)
        return None


@functools.cache
def _sound(dtype: torch.dtype, device: torch.device, blocks: tuple[BlockShape, ...], hopper: bool) -> bool:
    if os.environ.get(proof.ENVIRONMENT_VARIABLE) == "0":
        return True
    why = fault(dtype, device, blocks, hopper)
    if why is not None:
        what = "CUDA C++ on Hopper" if hopper else "Triton"
        _logger.warning("the fused residual blocks in %s are not used on %s: %s", what, device, why)
    return why is None


def fault(dtype: torch.dtype, device: torch.device, blocks: tuple[BlockShape, ...], hopper: bool) -> str | None:
    """Return what is wrong with the kernels on ``device``, or None if a small case gives the right result.

    The first call compiles the Triton kernels of the blocks. This takes some seconds unless an earlier process compiled
    them.
    """
    generator = torch.Generator().manual_seed(0)
    randn = functools.partial(torch.randn, generator=generator, device="cpu")  # not on the default device

    def draw(inputs: int, outputs: int, kernel: int = 1) -> Folded:
        weight = randn(outputs, inputs, kernel, kernel) * (inputs * kernel**2) ** -0.5
        return weight.to(device, dtype), randn(outputs).to(device, dtype)

    made: list[tuple[Layers, int]] = []
    for block in blocks:
        shortcut = draw(block.inputs, block.outputs) if block.projected else None
        first, second = draw(block.inputs, block.middle), draw(block.middle, block.middle, 3)
        made.append(((first, second, draw(block.middle, block.outputs), shortcut), block.stride))
    x = randn(2, blocks[0].inputs, 19, 30).relu().to(device, dtype)
    try:
        with torch.inference_mode():
            result = gpu_bottleneck.GpuBottlenecks(made, dtype, averaged=True, hopper=hopper).to(device)(x)
            truth, plain = composed(x.double(), made, averaged=True), composed(x, made, averaged=True)
        difference, limit = error(result, truth), allowed(error(plain, truth), dtype)
    except torch.OutOfMemoryError:  # no fault of the kernels
        raise
    except Exception as exception:  # any error of the compiler or the driver: the network runs without the kernels
        message = str(exception).strip().partition("\n")[0]
        return f"{type(exception).__name__}: {message}"
    if difference <= limit:
        return None
    return f"on a small case it differs by {difference:.3g} from float64, where {limit:.3g} is allowed"
