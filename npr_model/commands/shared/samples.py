"""The images of a command's folders, and a warning for the files in them that are left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from npr_model.commands.shared.terminal import warn_of_data

if TYPE_CHECKING:
    from npr_model.datasets.folders import Sample


def labelled_samples(folders: Iterable[Path], reals: Iterable[Path] | None) -> list[Sample]:
    """Return the samples of an evaluation, as :func:`npr_model.evaluation.evaluate.collect`."""
    from npr_model.datasets.folders import LeftOut
    from npr_model.evaluation.evaluate import collect

    left_out = LeftOut()
    samples = collect(folders, reals or (), left_out.add)
    warn_of_data(left_out)
    return samples


def calibration_samples(reals: Iterable[Path], fakes: Iterable[Path] | None) -> list[Sample]:
    """Return the samples of a calibration, as :func:`npr_model.evaluation.checkpoint_calibration.collect`."""
    from npr_model.datasets.folders import LeftOut
    from npr_model.evaluation.checkpoint_calibration import collect

    left_out = LeftOut()
    samples = collect(reals, fakes or (), left_out.add)
    warn_of_data(left_out)
    return samples
