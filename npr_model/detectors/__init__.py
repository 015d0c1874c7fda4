"""The networks: NPR, and other detectors of the paper's tables.
Each is a :class:`npr_model.detectors.base.DetectorNetwork`. Importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.detectors.base import DetectorNetwork

_CLASSES = {
    "npr": "npr_model.detectors.npr:NPRDetector",
    "bihpf": "npr_model.detectors.bihpf:BiHPF",
    "cnndetection": "npr_model.detectors.cnndetection:CNNDetection",
    "durall": "npr_model.detectors.durall:Durall",
    "f3net": "npr_model.detectors.f3net:F3Net",
    "frank": "npr_model.detectors.frank:Frank",
    "frepgan": "npr_model.detectors.frepgan:FrePGAN",
    "gandetection": "npr_model.detectors.gandetection:GANDetection",
    "lgrad": "npr_model.detectors.lgrad:LGrad",
    "ojha": "npr_model.detectors.ojha:Ojha",
    "patchfor": "npr_model.detectors.patchfor:Patchfor",
    "selfbland": "npr_model.detectors.selfbland:SelfBland",
}
NAMES = tuple(_CLASSES)  # that can be trained
_JOINT_CLASSES = {
    "cascade": "npr_model.detectors.cascade:Cascade",
    "pair": "npr_model.detectors.pair:Pair",
}


def require(name: str) -> str:
    """Return ``name``. Raises InputError if it is not one of NAMES."""
    if name not in _CLASSES:
        raise InputError(f"unknown detector {name!r}: use one of {', '.join(NAMES)}")
    return name


def detector_class(name: str) -> type[DetectorNetwork]:
    """Return the class of one of NAMES, or of a detector that joins others. Raises InputError for any other name."""
    module, _, attribute = (_JOINT_CLASSES.get(name) or _CLASSES[require(name)]).partition(":")
    return getattr(importlib.import_module(module), attribute)
