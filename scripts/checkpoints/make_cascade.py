"""Makes a cascade of two checkpoints: the logit of a fast NPR network, or the second one's where the first is in doubt.

    python -m scripts.checkpoints.make_cascade VALIDATION --first fast-1 --second wild-2 \\
        -o npr_model/weights/cascade.safetensors
    python -m scripts.checkpoints.make_cascade VALIDATION --first fast-1 --second npr+clip --most 0.25 \\
        -o npr_model/weights/cascade+clip.safetensors

VALIDATION holds <family>/{0_real,1_fake}, and neither part was trained on it. Its images, as they are and after JPEG at
quality 90, choose the logits that are in doubt, among all ranges between two quantiles. It is the range that sends the
fewest images on while the mean AUC of the families stays within LOSS of the second checkpoint's in both conditions.
With --most SHARE, it is the range with the highest mean AUC that sends at most this share on in each condition. Both
parts see the images through the second one's view. The share that is sent on is printed. `npr calibrate` then adds the
thresholds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from npr_model import checkpoints
from npr_model.checkpoints import LoadedCheckpoint, Metadata
from npr_model.datasets.folders import Sample, find_samples
from npr_model.detectors.cascade import Cascade
from npr_model.evaluation import metrics
from npr_model.evaluation.evaluate import evaluate
from npr_model.imaging.perturbations import Perturbation
from npr_model.imaging.views import View
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from scripts.checkpoints.make_card import LARGE

CONDITIONS = (None, "jpeg:90")
LOSS = 0.002  # of AUC, so that it is rarely above 0.005 on other images
QUANTILES = np.linspace(0, 1, 41)
MARGIN = 1e-3  # beyond all logits, as rounding must not leave the last one out


def logits(loaded: LoadedCheckpoint, view: View, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Return the logits of the samples in each of CONDITIONS, (N,)."""
    scorer, found = Scorer(loaded, view=view), []
    for text in CONDITIONS:
        rows: list[Row] = []
        evaluate(scorer, samples, perturbation=Perturbation.parse(text) if text else None, on_row=rows.append)
        by_source = {row.source: row.logit for row in rows}
        found.append(np.array([by_source[str(sample.path)] for sample in samples], float))
    return found


def mean_auc(samples: Sequence[Sample], values: np.ndarray) -> float:
    """Mean over the families of LARGE images or more, each against all real images."""
    return metrics.mean_auc([s.group for s in samples], [s.label for s in samples], values, LARGE)


def joined(first: np.ndarray, second: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the logits of a cascade with this range."""
    return np.where((first >= low) & (first <= high), second, first)


def shares(first: Sequence[np.ndarray], low: float, high: float) -> list[float]:
    """Return the share of the images that a range sends on, in each condition."""
    return [float(np.mean((values >= low) & (values <= high))) for values in first]


def choose(
    samples: Sequence[Sample],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    most: float | None = None,
) -> tuple[float, float]:
    """Return the lowest and the highest logit in doubt. The logits are those of the two checkpoints by condition."""
    wanted = [mean_auc(samples, values) - LOSS for values in second]
    ordered, every = np.unique(first[0]), np.concatenate(first)
    places = np.clip(np.rint(QUANTILES * len(ordered)).astype(int), 1, len(ordered) - 1)
    borders = (ordered[places - 1] + ordered[places]) / 2  # between two logits, so that rounding changes nothing
    borders[[0, -1]] = every.min() - MARGIN, every.max() + MARGIN
    ranges = [(float(low), float(high)) for low, high in itertools.combinations(borders, 2)]

    def aucs(ends: tuple[float, float]) -> list[float]:
        return [mean_auc(samples, joined(a, b, *ends)) for a, b in zip(first, second, strict=True)]

    if most is not None:
        least = min(max(shares(first, *ends)) for ends in ranges)
        if most < least:
            raise SystemExit(f"--most {most:g} is too small: the smallest range sends {least:.3f} of the images on")
        return max((ends for ends in ranges if max(shares(first, *ends)) <= most), key=lambda ends: sum(aucs(ends)))
    for ends in sorted(ranges, key=lambda ends: shares(first, *ends)[0]):
        if all(found >= least for found, least in zip(aucs(ends), wanted, strict=True)):
            return ends
    raise AssertionError("the range of all logits gives the second checkpoint's AUC")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--most", type=float, help="largest share of the images that is sent on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    first, second = (checkpoints.load(name) for name in (arguments.first, arguments.second))
    samples, view = find_samples(arguments.validation), second.metadata.view
    by_part = [logits(loaded, view, samples) for loaded in (first, second)]
    low, high = choose(samples, *by_part, arguments.most)
    cascade = Cascade(first.model, second.model, first.model_id, second.model_id, low, high)  # type: ignore[arg-type]
    metadata = Metadata(
        name=arguments.output.stem,
        view=view,
        decoder=second.metadata.decoder,
        training_data=f"the images of {first.model_id} and of {second.model_id}",
        licence="Apache-2.0",
    )
    checkpoints.save(arguments.output, cascade, metadata)
    sent_on = " and ".join(f"{100 * share:.1f} %" for share in shares(by_part[0], low, high))
    print(f"in doubt from {low:.3f} to {high:.3f}: {sent_on} of the validation images as they are and after JPEG 90")


if __name__ == "__main__":
    main()
