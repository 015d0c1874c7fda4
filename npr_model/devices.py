"""Which device computes."""

from __future__ import annotations

import re

from npr_model.errors import InputError


def check_device_name(name: str) -> None:
    """Raise InputError unless ``name`` is auto, cpu, cuda or cuda:N. Loads no torch."""
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise InputError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")


def choose_device(name: str = "auto") -> str:
    """The device to compute on, as torch names it.

    Args:
        name: "auto" (cuda where there is a GPU, else cpu), "cpu", "cuda", or "cuda:N" for one GPU of several.

    Raises:
        InputError: The name is unknown, or this machine has no such GPU.
    """
    import torch

    check_device_name(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name.startswith("cuda") and not count:
        raise InputError(f"device {name} was asked for, but torch finds no CUDA GPU")
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= count:
        raise InputError(f"device {name} was asked for, but torch finds only {count} GPUs, cuda:0 to cuda:{count - 1}")
    return name
