"""Makes the bundled checkpoint npr+clip from its two parts: one logit from both, w1 * NPR + w2 * CLIP + b.

    python -m scripts.checkpoints.make_pair VALIDATION -o npr_model/weights/npr+clip.safetensors

VALIDATION holds <family>/{0_real,1_fake}, and neither part was trained on it. The three numbers are fitted by logistic
regression to its images as they are and after JPEG at quality 90, as people save files again. Every family
counts equally within its class. `npr calibrate` then adds the thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from npr_model import checkpoints
from npr_model.checkpoints import LoadedCheckpoint, Metadata
from npr_model.datasets.folders import Sample, find_samples
from npr_model.detectors.pair import Pair
from npr_model.evaluation.evaluate import evaluate
from npr_model.imaging.perturbations import Perturbation
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from scripts.checkpoints.make_clip_probe import balanced

CONDITIONS = (None, "jpeg:90")
DETAIL = 256  # pixels, about as many as the training crops have


def logits(loaded: LoadedCheckpoint, samples: Sequence[Sample]) -> tuple[np.ndarray, list[Sample]]:
    """Return the logits of both parts under all CONDITIONS, (N, 2), and their samples."""
    scorer, by_source = Scorer(loaded), {str(sample.path): sample for sample in samples}
    rows: list[Row] = []
    for text in CONDITIONS:
        evaluate(scorer, samples, perturbation=Perturbation.parse(text) if text else None, on_row=rows.append)
    scored = [row for row in rows if row.error is None]
    return np.array([(row.logit_npr, row.logit_clip) for row in scored]), [by_source[row.source] for row in scored]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--npr", default="wild-2", help="checkpoint of NPR")
    parser.add_argument("--clip", default="clip-3", help="checkpoint of ojha")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    npr, clip = (checkpoints.load(name) for name in (arguments.npr, arguments.clip))
    pair = Pair(npr.model, clip.model, npr.model_id, clip.model_id, DETAIL)
    metadata = Metadata(
        name=arguments.output.stem,
        view=npr.metadata.view,
        decoder=npr.metadata.decoder,
        training_data=f"the images of {npr.model_id} and of {clip.model_id}",
        licence="Apache-2.0",
    )
    checkpoints.save(arguments.output, pair, metadata)
    scored, samples = logits(checkpoints.load(arguments.output), find_samples(arguments.validation))
    scale = scored.std(0)
    regression = LogisticRegression().fit(scored / scale, [s.label for s in samples], sample_weight=balanced(samples))
    pair.combine.weight.copy_(torch.from_numpy(regression.coef_ / scale))
    pair.combine.bias.copy_(torch.from_numpy(regression.intercept_))
    checkpoints.save(arguments.output, pair, metadata)
    w1, w2 = pair.combine.weight[0].tolist()
    print(f"logit = {w1:.3f} NPR + {w2:.3f} CLIP {pair.combine.bias.item():+.3f}")


if __name__ == "__main__":
    main()
