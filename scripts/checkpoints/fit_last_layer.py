"""Fits the last layer of an NPR checkpoint anew, by logistic regression on the averages that it sees.

    python -m scripts.checkpoints.fit_last_layer CHECKPOINT TRAINING --name N --training-data TEXT -o OUTPUT \
        [--strength S] [--validation VALIDATION --curve CURVE]

TRAINING and VALIDATION hold <family>/{0_real,1_fake}. Training by gradient descent draws its crops at random; here each
image is seen VERSIONS times, once as it is and else changed as the preset "wild" says. Both classes weigh alike, and
a family weighs as the square root of its number of images. All other layers stay as they are.

With --curve, the fit is repeated for growing shares of the repositories of TRAINING (the first two parts of a file's
name, OWNER__REPOSITORY__HASH), and the AUCs on TRAINING and VALIDATION are written as CSV: they tell whether more data
would help.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from npr_model import checkpoints
from npr_model.datasets.folders import FAKE, REAL, Sample, find_samples, read
from npr_model.detectors.npr import NPRDetector
from npr_model.evaluation import metrics
from npr_model.files import atomic_write
from npr_model.inference.fused import InferenceDetector
from npr_model.training.augmentation import augment
from npr_model.training.config import TrainConfig, preset

VERSIONS = 4  # of each training image: itself, and changed crops of it
SIDE = 176  # of the changed crops; a little less than the smallest images of TRAINING, so that crops can differ
STRENGTH = 1e-3  # inverse of the regularisation; chosen for wild-2 on the validation images among 1e-4, 1e-3 and 1e-2
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the repositories
DRAWS = 5  # for each share
LARGE = 10  # images of a family that counts in the mean AUC


class Features(NamedTuple):
    """What the last layer sees, (N, C), with the class, the family and the repository of each row."""

    values: np.ndarray
    labels: np.ndarray
    families: np.ndarray
    repositories: np.ndarray

    def where(self, rows: np.ndarray) -> Features:
        return Features(*(column[rows] for column in self))


class Head(NamedTuple):
    """A linear layer: (C,) weights and a bias."""

    weight: np.ndarray
    bias: float

    def logits(self, values: np.ndarray) -> np.ndarray:
        return values @ self.weight + self.bias


def measure(frozen: InferenceDetector, samples: Sequence[Sample], config: TrainConfig | None) -> Features:
    """Features of each sample as it is, and of VERSIONS - 1 changed ones if there is a ``config``."""
    values, kept = [], []
    for number, sample in enumerate(samples):
        pixels = read(sample.path).pixels
        random = np.random.default_rng((config.seed if config else 0, number))
        changed = [augment(pixels, config, random) for _ in range(VERSIONS - 1)] if config else []
        for image in (pixels, *changed):
            values.append(frozen.features(torch.tensor(image).permute(2, 0, 1)[None])[0].numpy())
            kept.append(sample)
    repositories = ["__".join(sample.path.name.split("__")[:2]) for sample in kept]
    labels, families = [sample.label for sample in kept], [sample.group for sample in kept]
    return Features(np.array(values, np.float64), *map(np.array, (labels, families, repositories)))


def fit(features: Features, strength: float = STRENGTH) -> Head:
    """Logistic regression on standardised features, whose mean and deviation are put into the layer."""
    groups = np.char.add(features.families, features.labels.astype(str))
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = counts[group] ** -0.5
    for label in (REAL, FAKE):
        weights[features.labels == label] /= weights[features.labels == label].sum()
    mean, deviation = features.values.mean(0), features.values.std(0) + 1e-6
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit((features.values - mean) / deviation, features.labels, sample_weight=weights * len(weights) / 2)
    weight = model.coef_[0] / deviation
    return Head(weight, float(model.intercept_[0] - weight @ mean))


def mean_auc(features: Features, head: Head) -> float:
    """Mean over the families of LARGE images or more, each against all real images."""
    return metrics.mean_auc(features.families, features.labels, head.logits(features.values), LARGE)


def curve(training: Features, validation: Features, strength: float = STRENGTH) -> Iterator[dict[str, object]]:
    """Lines of the table: share of the repositories, images seen, and the AUCs."""
    repositories = np.unique(training.repositories)
    for share in SHARES:
        for draw in range(DRAWS if share < 1 else 1):
            order = np.random.default_rng(draw).permutation(repositories)
            some = training.where(np.isin(training.repositories, order[: round(share * len(order))]))
            head = fit(some, strength)
            yield {
                "repositories": round(share * len(order)),
                "draw": draw,
                "crops": len(some.labels) // VERSIONS,
                "auc_training": round(100 * roc_auc_score(some.labels, head.logits(some.values)), 2),
                "auc_validation": round(100 * mean_auc(validation, head), 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("training", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--training-data", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=STRENGTH, help="inverse of the regularisation")
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--curve", type=Path)
    arguments = parser.parse_args()
    if (arguments.curve is None) != (arguments.validation is None):
        parser.error("--curve and --validation need each other")
    loaded = checkpoints.load(arguments.checkpoint)
    network = loaded.model
    if not isinstance(network, NPRDetector):
        parser.error(f"{arguments.checkpoint} is no NPR detector")
    config = preset("wild").changed(crop_size=SIDE)
    frozen, console = InferenceDetector(network, dtype=torch.float32), Console()
    training = measure(frozen, find_samples(arguments.training), config)
    head = fit(training, arguments.strength)
    console.print(f"AUC on the {len(training.labels)} training crops: {100 * mean_auc(training, head):.1f}")
    if arguments.curve is not None:
        validation = measure(frozen, find_samples(arguments.validation), None)
        before = Head(network.fc1.weight[0].detach().double().numpy(), network.fc1.bias.item())
        for name, one in (("before", before), ("now", head)):
            console.print(f"mean AUC on {arguments.validation}, {name}: {100 * mean_auc(validation, one):.1f}")
        lines = list(curve(training, validation, arguments.strength))
        with atomic_write(arguments.curve) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    with torch.no_grad():
        network.fc1.weight.copy_(torch.from_numpy(head.weight)[None])
        network.fc1.bias.fill_(head.bias)
    metadata = dataclasses.replace(loaded.metadata, name=arguments.name, training_data=arguments.training_data)
    checkpoints.save(arguments.output, network, metadata)


if __name__ == "__main__":
    main()
