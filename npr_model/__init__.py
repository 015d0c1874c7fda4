"""The detector of AI-generated images built on npr_kernels: train, evaluate, and screen image collections.

Importing it loads neither torch nor the kernels, so that the command line answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npr_model.detectors.npr import NPRDetector

__all__ = ["NPRDetector"]


def __getattr__(name: str):
    if name == "NPRDetector":
        from npr_model.detectors.npr import NPRDetector

        return NPRDetector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
