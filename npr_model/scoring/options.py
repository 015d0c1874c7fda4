"""How images are scored, as one value: from a command line or from :func:`npr_model.load`. Loads no torch."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npr_model import weights
from npr_model.devices import check_device_name, choose_device
from npr_model.errors import InputError
from npr_model.imaging.limits import MAX_PIXELS

if TYPE_CHECKING:
    import torch

    from npr_model.scoring.scorer import Scorer

DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class ScoringOptions:
    """What to score with and how.

    Attributes:
        checkpoint: Name of a bundled checkpoint, or path of a .safetensors or .pth file. Files are not trusted: nothing
            in them is executed.
        view: Pixels that the network sees: "native", "sample:KxS", "crop:S", "resize:S" or "tile:S". None: the
            checkpoint's.
        batch_size: Images of one size that are scored together.
        workers: Decoding threads; 0 for one per core, at most 16.
        backend: Backend of npr_kernels. None: the best that is available.
        dtype: "float32", "bfloat16" or "int8". None: bfloat16 where the hardware multiplies it natively, else float32.
        device: "auto" (cuda where there is a GPU), "cpu", "cuda" or "cuda:N".
        max_pixels: Larger images are errors.
        raw_previews: Whether the JPEG preview in a camera raw file is scored; else such a file is an error.
        false_positive_rate: Share of photographs that may get the verdict "generated". It must be one of the rates that
            the checkpoint is calibrated for. None: the checkpoint's first.
        cache: SQLite file that keeps scores by the bytes of the images, for later runs. None: no cache.

    Raises:
        InputError: A number is too small.
    """

    checkpoint: str | os.PathLike = weights.DEFAULT
    view: str | None = None
    batch_size: int = 16
    workers: int = 0
    backend: str | None = None
    dtype: str | None = None
    device: str = "auto"
    max_pixels: int = MAX_PIXELS
    raw_previews: bool = False
    false_positive_rate: float | None = None
    cache: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("max_pixels", 1)):
            if (number := getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}, got {number}")

    def scorer(self) -> Scorer:
        """Load the checkpoint and freeze it on the device. Raises InputError."""
        check_device_name(self.device)  # before the slow parts
        return self.scorer_maker()(device=choose_device(self.device))

    def scorer_maker(self) -> functools.partial[Scorer]:
        """Load the checkpoint and check everything but the device; the result takes ``device`` and can be pickled.

        Raises InputError.
        """
        from npr_model.imaging.views import View

        view = View.parse(self.view) if self.view else None

        from npr_kernels.backends import registry
        from npr_model import checkpoints
        from npr_model.provenance.validation import check_trust_anchors
        from npr_model.scoring.scorer import Scorer
        from npr_model.verdicts import Calibration

        check_trust_anchors()
        dtype = torch_dtype(self.dtype)
        if self.backend is not None:
            registry.get(self.backend)
        loaded = checkpoints.load(self.checkpoint, backend=self.backend)
        calibration = loaded.metadata.calibration
        if self.false_positive_rate is not None:
            calibration = (calibration or Calibration()).at(self.false_positive_rate)
        return functools.partial(
            Scorer,
            loaded,
            view=view,
            calibration=calibration,
            batch_size=self.batch_size,
            workers=self.workers,
            dtype=dtype,
            max_pixels=self.max_pixels,
            raw_previews=self.raw_previews,
            cache=self.cache,
        )


def torch_dtype(name: str | None) -> torch.dtype | None:
    """torch's dtype of one of DTYPES. Raises InputError for any other name."""
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: use {', '.join(DTYPES)}")
    return getattr(torch, name)
