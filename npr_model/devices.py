"""Which device computes."""

from __future__ import annotations

import torch

from npr_model.errors import InputError


def choose_device(name: str) -> str:
    """ "cpu" or "cuda", from "auto" (CUDA where there is a GPU), "cpu" or "cuda". Raises InputError."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device {name!r}; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch finds no CUDA GPU")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
