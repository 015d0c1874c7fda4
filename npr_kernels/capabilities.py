"""What this machine and this build of torch can do."""

from __future__ import annotations

import torch

from npr_kernels import extension
from npr_kernels.tracing import constant

_gpu_capabilities: dict[torch.device, tuple[int, int]] = {}


def cpu_capability() -> str | None:
    """Return the instruction set of the `cpu` kernels: avx512bf16, avx512, avx2 or portable; None without them."""
    return None if extension.LOAD_ERROR else torch.ops.npr_kernels.cpu_capability()


def has_vnni() -> bool:
    """Return whether the processor sums products of int8 in 32 bits (VNNI). False where nothing was compiled."""
    return not extension.LOAD_ERROR and torch.ops.npr_kernels.has_vnni()


@constant
def gpu_capability(device: torch.device) -> tuple[int, int]:
    """Return the CUDA compute capability of ``device``, e.g. (9, 0) for an H100."""
    if device not in _gpu_capabilities:
        _gpu_capabilities[device] = torch.cuda.get_device_capability(device)
    return _gpu_capabilities[device]


def is_compiled() -> bool:
    """Return whether the compiled extension is loaded."""
    return not extension.LOAD_ERROR


def onednn_serves(dtype: torch.dtype) -> bool:
    """Return whether torch has fused oneDNN convolutions for ``dtype`` here.

    They are internal operators for torch's own compiler, so a version of torch may lack them.
    """
    if not (hasattr(torch.ops.mkldnn, "_convolution_pointwise") and torch.backends.mkldnn.is_available()):
        return False
    if dtype == torch.bfloat16:
        return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    return dtype == torch.float32


def gpus() -> list[str]:
    """Return name and compute capability of each CUDA device, e.g. "NVIDIA H100 80GB HBM3 (9.0)"."""
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{properties.name} ({properties.major}.{properties.minor})" for properties in devices]
