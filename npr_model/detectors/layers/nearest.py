"""Classification by the nearest stored vectors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 100  # by which CLIP multiplies cosines to make logits of them
MAX_BYTES = 2**31  # of all stored vectors; as many as a run of training may have

_AT_ONCE = 4096  # vectors that are compared with as many others


class NearestNeighbour(nn.Module):
    """Logits from the cosine distances to the nearest real and the nearest generated vector: (N, width) -> (N, 1).

    The logit is SCALE times the difference, the first distance minus the second. It is positive if a generated vector
    is nearer. It is 0 as long as no vectors are stored. The vectors have length 1 and are stored in float32, because
    float16 has too few digits for the small differences.

    Args:
        width: Number of values of a vector.
        stored: How many vectors there are, real and generated.

    Raises:
        ValueError: ``stored`` is not a pair of counts, of which both or none are 0, or the vectors would take more than
            MAX_BYTES.
    """

    real: Tensor
    generated: Tensor

    def __init__(self, width: int, stored: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        if (
            not isinstance(stored, tuple)
            or len(stored) != 2
            or not all(type(count) is int and count >= 0 for count in stored)
            or (stored[0] == 0) != (stored[1] == 0)
        ):
            raise ValueError(f"stored must be two numbers of vectors, both above 0 or both 0, got {stored!r}")
        if 4 * width * sum(stored) > MAX_BYTES:
            raise ValueError(f"{sum(stored)} vectors of {width} values are more than the limit of {MAX_BYTES} bytes")
        self.in_features = width
        for name, count in zip(("real", "generated"), stored, strict=True):
            self.register_buffer(name, torch.zeros(count, width))

    @property
    def stored(self) -> tuple[int, int]:
        """How many vectors there are, real and generated."""
        return len(self.real), len(self.generated)

    def store(self, vectors: np.ndarray, labels: np.ndarray) -> None:
        """Replace the stored vectors by (N, width) ones with (N,) labels (1: generated). Equal ones are stored once."""
        device = self.real.device
        for name, label in (("real", 0), ("generated", 1)):
            directions = F.normalize(torch.from_numpy(vectors[labels == label]), dim=1).float().numpy()
            setattr(self, name, torch.from_numpy(np.unique(directions, axis=0)).to(device))

    def forward(self, vectors: Tensor) -> Tensor:
        directions = F.normalize(vectors, dim=1)
        if not len(self.real):
            return 0 * directions.sum(1, keepdim=True)
        nearest = (self._largest_cosines(part) for part in directions.split(_AT_ONCE))
        return SCALE * torch.cat([generated - real for real, generated in nearest])

    def _largest_cosines(self, directions: Tensor) -> list[Tensor]:
        """(N, 1) cosines between vectors of length 1 and the nearest real one, and the nearest generated one."""
        found = []
        for stored in (self.real, self.generated):
            parts = (directions @ part.to(directions.dtype).T for part in stored.split(_AT_ONCE))
            found.append(torch.cat([cosines.amax(1, keepdim=True) for cosines in parts], 1).amax(1, keepdim=True))
        return found
