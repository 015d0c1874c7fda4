"""The detector of AI-generated images built on npr_kernels: score images, screen collections, train and evaluate.

::

    detector = npr_model.load()
    detector.score("photo.jpg")             # Score(logit=..., probability=..., verdict="real", ...)
    npr_model.screen("photos/", output="scores.parquet")

Importing the package loads neither torch nor the kernels, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npr_kernels import __version__
    from npr_model.api import Detector, Score, load, screen
    from npr_model.checkpoints import Metadata
    from npr_model.detectors.npr import NPRDetector
    from npr_model.errors import InputError
    from npr_model.scoring.options import ScoringOptions
    from npr_model.scoring.rows import Row, Totals

__all__ = [
    "Detector",
    "InputError",
    "Metadata",
    "NPRDetector",
    "Row",
    "Score",
    "ScoringOptions",
    "Totals",
    "__version__",
    "load",
    "screen",
]

_MODULES = {
    "Detector": "npr_model.api",
    "InputError": "npr_model.errors",
    "Metadata": "npr_model.checkpoints",
    "NPRDetector": "npr_model.detectors.npr",
    "Row": "npr_model.scoring.rows",
    "Score": "npr_model.api",
    "ScoringOptions": "npr_model.scoring.options",
    "Totals": "npr_model.scoring.rows",
    "__version__": "npr_kernels",  # one project, one version
    "load": "npr_model.api",
    "screen": "npr_model.api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
