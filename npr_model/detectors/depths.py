"""Where the backbone of Patchfor is cut off. Importing this file loads no torch."""

from __future__ import annotations

# Backbone, and its last stage or block.
DEPTHS = (
    *(f"resnet18-layer{number}" for number in range(1, 4)),
    *(f"xception-block{number}" for number in range(1, 6)),
)
DEFAULT_DEPTH = "xception-block2"
