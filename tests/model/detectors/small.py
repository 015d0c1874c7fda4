"""Small versions of large networks, which train in seconds instead of minutes."""

from __future__ import annotations

from collections.abc import Callable

from npr_model.detectors import gandetection
from npr_model.detectors.layers import efficientnet

B4 = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.0,
    "hidden_dim": 640,
    "batch_norm_momentum": 0.1,
    "num_block_repeats": [1, 1],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "expand_ratios": [1, 4],
}


def shrink_efficientnet(put: Callable[[object, str, object], None]) -> None:
    """Make EfficientNet-B4 two narrow blocks, and GANDetection three of them with small patches.

    ``put``: setattr, or that of pytest's monkeypatch.
    """
    put(gandetection.GANDetection, "training_sets", 3)
    put(gandetection, "PATCH", 16)
    put(efficientnet, "B4", B4)


def without_dropout(put: Callable[[object, str, object], None]) -> None:
    """As :func:`shrink_efficientnet`, and the networks draw no random numbers."""
    shrink_efficientnet(put)
    put(efficientnet, "B4", B4 | {"drop_connect_rate": 0.0})
    put(efficientnet, "_DROPOUT", 0.0)
