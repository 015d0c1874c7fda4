"""Gives a checkpoint its threshold: the logit that a stated share of real photographs exceeds.

    python scripts/set_threshold.py CHECKPOINT --real FOLDER --false-positive-rate 0.05 --output FILE.safetensors

FOLDER holds photographs that the checkpoint was not trained on, or a data set of which the 0_real folders count.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from npr_model import checkpoints, datasets
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import file_item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--false-positive-rate", type=float, default=0.05)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not 0 < arguments.false_positive_rate < 1:
        parser.error(f"--false-positive-rate must lie between 0 and 1, got {arguments.false_positive_rate}")
    try:
        loaded = checkpoints.load(arguments.checkpoint)
        samples = datasets.find_reals(arguments.real)
    except checkpoints.InputError as error:
        parser.error(str(error))

    rows = Scorer(loaded).score(file_item(sample.path) for sample in samples)
    logits = [row.logit for row in rows if row.error is None]
    if not logits:
        parser.error(f"none of the {len(samples)} images in {arguments.real} could be scored")
    threshold = float(np.quantile(logits, 1 - arguments.false_positive_rate))
    note = f"{100 * arguments.false_positive_rate:g} % false positives on {len(logits)} held-out photographs"
    calibration = checkpoints.Calibration(threshold=threshold, note=note)
    metadata = dataclasses.replace(loaded.metadata, calibration=calibration)
    checkpoints.save(arguments.output, loaded.model, metadata)
    print(f"threshold {threshold:.4f}: {note}")


if __name__ == "__main__":
    main()
