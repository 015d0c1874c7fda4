"""Loads the compiled extension. If that fails, the import goes on, and the reason is kept and shown."""

from __future__ import annotations

import json
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent


def build_info() -> dict | None:
    """Return setup.py's record of what was built, with which tools and which torch; None if there is none."""
    path = PACKAGE / "_build_info.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def require(operator: str) -> None:
    """Raise RuntimeError with the reason if the extension, and so ``operator``, is not loaded."""
    if LOAD_ERROR:
        raise RuntimeError(f"{operator} is not available: {LOAD_ERROR}")


def _load() -> str | None:
    """Load the operators into torch. Return the reason if that is not possible, else None."""
    libraries = sorted(PACKAGE.glob("_C*.so"))
    if not libraries:
        info = build_info()
        cause = " (NPR_KERNELS_BUILD=none)" if info and not info["sources"] else ""
        return f"the compiled extension was not built{cause}; install from source with a C++ compiler to get it"
    try:
        torch.ops.load_library(str(libraries[0]))
        torch.ops.npr_kernels.cpu_capability()  # fails if NPR_KERNELS_CPU_CAPABILITY is not supported
    except (OSError, RuntimeError, AttributeError) as error:  # for example, another ABI
        message = str(error).splitlines()[0]
        if message.startswith("NPR_KERNELS_CPU_CAPABILITY is"):
            return message
        return f"{libraries[0].name} failed to load: {message}"
    return None


def _cuda_error() -> str | None:
    """Return why the extension has no CUDA kernels, or None if it has them."""
    if LOAD_ERROR:
        return LOAD_ERROR
    if torch._C._dispatch_has_kernel_for_dispatch_key("npr_kernels::npr_stem", "CUDA"):
        return None
    info = build_info() or {}
    return f"the compiled extension has no CUDA kernels: {info.get('cuda') or 'it was built without them'}"


# All of them are constants, because torch.compile cannot trace the functions.
LOAD_ERROR = _load()
# The error of an invalid NPR_KERNELS_CPU_CAPABILITY. CPU calls then fail instead of running slowly on plain PyTorch.
CAPABILITY_ERROR = LOAD_ERROR if LOAD_ERROR and "NPR_KERNELS_CPU_CAPABILITY is" in LOAD_ERROR else None
CUDA_ERROR = _cuda_error()
CUDA_ARCHITECTURES = (build_info() or {}).get("CUDA architectures", "")  # from setup.py, e.g. "8.0;9.0a;10.0+PTX"
