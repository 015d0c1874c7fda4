"""Two detectors with one logit: NPR, and a second opinion by an image encoder."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from npr_model.detectors.base import JoinedNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.ojha import Ojha


class Pair(JoinedNetwork):
    """logit = w1 * logit of NPR + w2 * logit of :class:`npr_model.detectors.ojha.Ojha` + b.

    NPR reads traces of up-sampling, which resizing and JPEG remove. The encoder recognises other traces, and what the
    picture shows; both remove less of that. A checkpoint stores the three numbers and the names of the two parts.

    Args:
        npr, clip: The parts.
        npr_checkpoint, clip_checkpoint: Their checkpoints, as name@digest.
        detail: Side in pixels of the middle of an image that the encoder sees besides the whole. Making a large image
            small removes traces. Only images with a side longer than twice the encoder's input have two such views;
            the logit of the encoder is the mean of both. Default: none, the encoder sees the whole image alone.

    Raises:
        ValueError: ``detail`` is not an integer of 2 or more.

    Attributes:
        parts: Both networks. They are not among the pair's own weights, since they have checkpoints of their own.
        combine: The weights and the bias.
    """

    detector, paper_name = "pair", "NPR + Ojha"
    architecture = ("npr_checkpoint", "clip_checkpoint", "detail")
    joins = MappingProxyType({"npr_checkpoint": ("npr",), "clip_checkpoint": ("ojha",)})

    def __init__(
        self, npr: NPRDetector, clip: Ojha, npr_checkpoint: str, clip_checkpoint: str, detail: int | None = None
    ) -> None:
        super().__init__()
        if detail is not None and (isinstance(detail, bool) or not isinstance(detail, int) or detail < 2):
            raise ValueError(f"detail must be an integer of 2 or more, got {detail!r}")
        self.parts = (npr, clip)
        self.npr_checkpoint, self.clip_checkpoint, self.detail = npr_checkpoint, clip_checkpoint, detail
        self.grid_size = npr.grid_size
        self.combine = nn.Linear(2, 1).requires_grad_(False)
        nn.init.ones_(self.combine.weight)
        nn.init.zeros_(self.combine.bias)

    def combined(self, npr: float, clip: float) -> float:
        """Return the logit of two logits, rounded to float32."""
        weights = self.combine.weight[0].tolist()
        return float(np.float32(weights[0] * npr + weights[1] * clip + self.combine.bias.item()))

    def forward(self, images: Tensor) -> Tensor:
        """Both parts see the whole image. In a screening NPR sees the tiles of its view, and the encoder ``detail``."""
        return self.combine(torch.cat([part.to(images.device)(images) for part in self.parts], 1))
