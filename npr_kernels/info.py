"""``python -m npr_kernels.info`` shows versions, what was built with which tools, and why backends are missing."""

from __future__ import annotations

import json
import platform
import sys

import torch

import npr_kernels
from npr_kernels.backends import extension, registry


def cpu_capability() -> str | None:
    """Return the instruction set of the `cpu` kernels: avx512bf16, avx512, avx2 or portable; None without them."""
    return None if extension.FAILURE else torch.ops.npr_kernels.cpu_capability()


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


def collect() -> dict:
    """Return what a bug report needs, as JSON types."""
    return {
        "npr_kernels": npr_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": gpus(),
        "extension": extension.FAILURE or "loaded",
        "build": extension.build_info(),
        "backends": {name: reason or "available" for name, reason in registry.available_backends().items()},
    }


def main() -> None:
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(collect(), indent=2))
        return
    for name, value in collect().items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key}: {item}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
