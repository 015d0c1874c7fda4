"""Loads the compiled extension. A failure never breaks an import: its reason is kept and shown."""

from __future__ import annotations

import json
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent


def build_info() -> dict | None:
    """What setup.py recorded: what was built, with which tools, against which torch. None if nothing was recorded."""
    path = PACKAGE / "_build_info.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _load() -> str | None:
    """Load the operators into torch; the reason if that is not possible."""
    libraries = sorted(PACKAGE.glob("_C*.so"))
    if not libraries:
        info = build_info()
        built = "installed without it (NPR_KERNELS_BUILD=none)" if info and not info["sources"] else "not built"
        return f"the compiled extension is {built}; install from source with a C++ compiler to have it"
    try:
        torch.ops.load_library(str(libraries[0]))
        torch.ops.npr_kernels.cpu_capability()  # fails for an instruction set that this machine lacks
    except (OSError, RuntimeError, AttributeError) as error:  # an ABI mismatch, say: not the same as "not built"
        return f"{libraries[0].name} failed to load: {str(error).splitlines()[0]}"
    return None


FAILURE = _load()
