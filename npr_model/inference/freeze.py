"""Freezing a detector for scoring: no gradients, evaluation mode, in the fastest form for this machine."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference.fused import InferenceDetector


def freeze(detector: DetectorNetwork, dtype: torch.dtype | None = None, *, compile: bool = False) -> nn.Module:
    """A frozen copy of ``detector`` on its device: (N, 3, H, W) -> (N, 1) float32 logits, without gradients.

    Args:
        detector: The network to copy.
        dtype: Type of the activations. None: bfloat16 where the hardware multiplies it natively, else float32, for NPR;
            float32 for the other detectors. int8 needs an NPR detector with activation steps and a CPU with AVX2.
        compile: Hand NPR's residual blocks to ``torch.compile``: about a minute at the first batch of each size.

    Raises:
        InputError: ``dtype`` is not supported here, or something that the detector needs is not installed.
    """
    detector.check_ready()
    if isinstance(detector, NPRDetector):
        return InferenceDetector(detector, dtype=dtype, compile=compile)
    if dtype == torch.int8:
        raise InputError(f"the detector {detector.detector} does not support int8; use float32 or bfloat16")
    return FrozenDetector(detector, dtype or torch.float32)


class FrozenDetector(nn.Module):
    """A copy of ``detector`` in evaluation mode, without gradients, autocast to ``dtype``."""

    def __init__(self, detector: DetectorNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.detector, self.dtype = copy.deepcopy(detector), dtype
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.detector(images).float()
