"""Two detectors with one logit: a fast NPR network, and a better detector where the fast one is in doubt."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from npr_model.detectors.base import JoinedNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.pair import Pair


class Cascade(JoinedNetwork):
    """The logit of the first detector, or that of the second where the first one's lies in ``low`` .. ``high``.

    A checkpoint stores the numbers and the names of the two parts. It has no weights of its own.

    Args:
        first, second: The parts: the fast network and the better detector, a network or a pair with an image encoder.
        first_checkpoint, second_checkpoint: Their checkpoints, as name@digest.
        low, high: Logits of the first network that are in doubt, both included.

    Attributes:
        parts: Both networks. They are not among the cascade's own weights, since they have checkpoints of their own.

    Raises:
        ValueError: ``low`` and ``high`` are not numbers, the first at most the second, or the parts have cells of
            different sizes.
    """

    detector, paper_name = "cascade", "NPR cascade"
    architecture = ("first_checkpoint", "second_checkpoint", "low", "high")
    joins = MappingProxyType({"first_checkpoint": ("npr",), "second_checkpoint": ("npr", "pair")})

    def __init__(
        self,
        first: NPRDetector,
        second: NPRDetector | Pair,
        first_checkpoint: str,
        second_checkpoint: str,
        low: float,
        high: float,
    ) -> None:
        super().__init__()
        if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)) or not low <= high:
            raise ValueError(f"low and high must be numbers, low at most high, got {low!r} and {high!r}")
        if first.grid_size != second.grid_size:
            raise ValueError(f"the parts have cells of {first.grid_size} and {second.grid_size} pixels")
        self.parts = (first, second)
        self.first_checkpoint, self.second_checkpoint = first_checkpoint, second_checkpoint
        self.low, self.high = (float(np.float32(end)) for end in (low, high))  # as logits are float32
        self.grid_size = first.grid_size

    def is_in_doubt(self, logit: float) -> bool:
        """Return whether the second network is asked, given the logit of the first."""
        return self.low <= logit <= self.high

    def forward(self, images: Tensor) -> Tensor:
        """Decide for each of the images by its own logit. In a screening the mean over an image's tiles decides."""
        first, second = (part.to(images.device) for part in self.parts)
        logits = first(images)
        doubtful = ((logits >= self.low) & (logits <= self.high)).flatten()
        if not doubtful.any():
            return logits
        return torch.index_put(logits, (doubtful,), second(images[doubtful]).to(logits.dtype))
