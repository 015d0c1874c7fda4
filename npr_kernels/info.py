"""``python -m npr_kernels.info`` shows versions, what was built with which tools, and why backends are missing."""

from __future__ import annotations

import json
import platform
import sys

import torch

import npr_kernels
from npr_kernels import extension
from npr_kernels.backends import registry
from npr_kernels.capabilities import cpu_capability, gpus


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
        "extension": extension.LOAD_ERROR or "loaded",
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
