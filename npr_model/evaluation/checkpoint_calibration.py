"""From photographs to a calibrated checkpoint: what ``npr calibrate`` does.

The checkpoint scores the images. Their logits give the thresholds and the temperature (calibration.py). Their pixels
give the quantisation scales (:mod:`npr_model.inference.quantisation`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from npr_model import checkpoints
from npr_model.datasets.folders import (
    FAKE,
    REAL,
    DatasetError,
    OnOther,
    Sample,
    find_fakes,
    find_reals,
    find_samples,
    has_class_folders,
)
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.evaluation import calibration
from npr_model.evaluation.calibration import RATES, UNCERTAIN_RATE, Calibrated
from npr_model.evaluation.distinct import DistinctScores, score_distinct
from npr_model.imaging.views import View
from npr_model.inference import quantisation
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row
from npr_model.verdicts import Calibration


@dataclass(frozen=True)
class CalibratedCheckpoint:
    """A checkpoint that was calibrated and written.

    Attributes:
        result: The calibration, with warnings.
        scores: What it was computed from.
        view: The view that it holds for.
    """

    result: Calibrated
    scores: DistinctScores
    view: View


def collect(
    reals: Iterable[str | os.PathLike],
    fakes: Iterable[str | os.PathLike] = (),
    on_other: OnOther = lambda path, reason: None,
) -> list[Sample]:
    """Return the images of all folders, each file once.

    Args:
        reals: Folders of photographs. Those with class folders give both classes.
        fakes: Folders of generated images.
        on_other: As in :func:`npr_model.datasets.folders.find_samples`.

    Raises:
        DatasetError: There are no photographs, or a folder has no images.
    """
    roots = list(reals)
    samples: list[Sample] = []
    for root in roots:
        list_root = find_samples if has_class_folders(root) else find_reals
        samples += list_root(root, on_other=on_other)
    if not any(sample.label == REAL for sample in samples):
        raise DatasetError(f"no real images in {', '.join(map(str, roots))}")
    samples += [sample for root in fakes for sample in find_fakes(root, on_other)]
    return list({(sample.path.resolve(), sample.label): sample for sample in samples}.values())


def calibrate_checkpoint(
    options: ScoringOptions,
    samples: Sequence[Sample],
    output: str | os.PathLike,
    *,
    rates: Sequence[float] = RATES,
    uncertain_rate: float = UNCERTAIN_RATE,
    on_row: Callable[[Row], None] = lambda row: None,
    on_scores: Callable[[DistinctScores], None] = lambda scores: None,
    on_measured: Callable[[], object] = lambda: None,
) -> CalibratedCheckpoint:
    """Score images with a checkpoint, and write it with thresholds, temperature and quantisation scales from them.

    Args:
        options: The checkpoint, and how it scores. The result holds for this view.
        samples: Photographs that the checkpoint was not trained on and, for the temperature, generated images
            (:func:`collect`).
        output: The .safetensors file to write. It may be the checkpoint itself.
        rates, uncertain_rate: As in :func:`npr_model.evaluation.calibration.calibrate`.
        on_row: Called with each row, also of images that do not count.
        on_scores: Called with all scores, before the calibration, which may find them to be too few.
        on_measured: Called after each image that the quantisation scales are measured on.

    Raises:
        InputError: The checkpoint cannot be read or written, or ``output`` is not a .safetensors file in a folder that
            exists; the latter before anything is scored.
        CalibrationError: A rate is not in 0 .. 1, or there are too few photographs for all rates.
    """
    output = Path(output)
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise InputError(f"output {output} must be a .safetensors file in a folder that exists")
    calibration.require_enough(sum(sample.label == REAL for sample in samples), rates, uncertain_rate)
    scorer = options.scorer()
    scores = score_distinct(scorer, samples, on_row)
    on_scores(scores)
    loaded = checkpoints.load(options.checkpoint)
    result = calibration.calibrate(
        scores.logits(REAL),
        scores.logits(FAKE),
        rates=rates,
        uncertain_rate=uncertain_rate,
        temperature=(loaded.metadata.calibration or Calibration()).temperature,
        conditions=scores.logits_by_condition(REAL),
    )
    if isinstance(loaded.model, NPRDetector):
        paths = [sample.path for sample, _ in scores.scored]
        batches = quantisation.central_parts(paths, loaded.model.grid_size, on_measured)
        loaded.model.set_activation_steps(quantisation.measure_steps(loaded.model, batches))
    metadata = replace(loaded.metadata, calibration=result.calibration, view=scorer.view)
    checkpoints.save(output, loaded.model, metadata)
    return CalibratedCheckpoint(result, scores, scorer.view)
