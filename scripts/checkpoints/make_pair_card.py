"""Prints the card of the bundled checkpoint npr+clip as Markdown: it, its parts, and the cascade that asks it in doubt
only, on the same images.

    python -m scripts.checkpoints.make_pair_card VALIDATION --training TRAINING > npr_model/weights/npr+clip.md

Both folders hold <family>/{0_real,1_fake}; TRAINING tells which families the networks were trained on.
NPR_MODEL_EMBEDDINGS=FILE keeps the embeddings for later runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from npr_model import checkpoints
from npr_model.datasets.folders import FAKE, REAL, Sample, find_samples
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.pair import Pair
from npr_model.evaluation.evaluate import Scores, evaluate, mean
from npr_model.evaluation.metrics import Metrics
from npr_model.imaging.perturbations import Perturbation
from npr_model.reporting.tables import Table, percent
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration
from scripts.checkpoints.make_card import CONDITIONS, LARGE, calibrated, interval

NAME, CASCADE = "npr+clip", "cascade+clip"
MADE_BY_PEOPLE = {"painting": "paintings", "drawing": "drawings", "cgi": "renderings", "screenshot": "screenshots"}
PHOTOGRAPHS = "photographs and scans"


@dataclass(frozen=True)
class Scored:
    """An image, with its row of the pair and its row of the cascade."""

    sample: Sample
    pair: Row
    cascade: Row


@dataclass(frozen=True)
class Contender:
    """A checkpoint, and its logit of an image."""

    name: str
    calibration: Calibration
    logit: Callable[[Scored], float | None]

    def scores(self, real: Sequence[Scored], fake: Sequence[Scored]) -> Scores:
        return Scores(*(np.sort(np.array([self.logit(image) for image in images], float)) for images in (real, fake)))

    def flags(self, image: Scored) -> bool:
        logit = self.logit(image)
        return logit is not None and self.calibration.of(image.pair.condition).verdict(logit) == "generated"


def contenders() -> list[Contender]:
    pair = checkpoints.load(NAME)
    assert isinstance(pair.model, Pair)
    names = {NAME: lambda image: image.pair.logit}
    names |= {pair.model.npr_checkpoint.partition("@")[0]: lambda image: image.pair.logit_npr}
    names |= {pair.model.clip_checkpoint.partition("@")[0]: lambda image: image.pair.logit_clip}
    names |= {CASCADE: lambda image: image.cascade.logit}
    found = [(name, checkpoints.load(name).metadata.calibration, logit) for name, logit in names.items()]
    return [Contender(name, calibration or Calibration(), logit) for name, calibration, logit in found]


def kind(group: str) -> str:
    """What the real images of a group show: the key of a row of the second table."""
    return MADE_BY_PEOPLE.get(group.partition("_")[0], PHOTOGRAPHS)


def separation(
    contender: Contender, by_group: Mapping[tuple[str, int], list[Scored]], trained: Collection[str]
) -> tuple[str, ...]:
    """The numbers of a row of the first table.

    The mean AUC of the large families, and of those not in ``trained``, and the share found, each against all real
    images; the real images with the verdict "generated"; and the mean AUC on equal content.
    """
    reals = [image for (_, label), images in by_group.items() if label == REAL for image in images]
    fakes = {group: images for (group, label), images in by_group.items() if label == FAKE and len(images) >= LARGE}
    whole = mean([contender.scores(reals, images) for images in fakes.values()], 0.0)
    unseen = mean([contender.scores(reals, images) for group, images in fakes.items() if group not in trained], 0.0)
    equal = [
        contender.scores(by_group[group, REAL], images) for group, images in fakes.items() if (group, REAL) in by_group
    ]
    own = mean(equal, 0.0)
    assert whole is not None and unseen is not None and own is not None  # as there are images of both classes
    return (
        auc(whole),
        auc(unseen),
        percent(whole.at_rates[0].detected),
        flagged(contender, reals),
        percent(own.roc_auc),
    )


def auc(metrics: Metrics) -> str:
    low, high = metrics.intervals["roc_auc"]
    return f"{percent(metrics.roc_auc)} ({percent(low)}-{percent(high)})"


def flagged(contender: Contender, images: Sequence[Scored]) -> str:
    count = sum(map(contender.flags, images))
    low, high = interval(count, len(images))
    return f"{percent(count / len(images))} ({percent(low)}-{percent(high)})"


def share_asked(images: Sequence[Scored]) -> float:
    """The share of the images for which the cascade asked the pair."""
    return float(np.mean([image.cascade.scored_by == image.pair.model for image in images]))


def tables(images: Mapping[str, Sequence[Scored]], trained: Collection[str]) -> list[Table]:
    """The tables for the images of each condition."""
    apart, wrong, asked = [], [], []
    for condition, scored in images.items():
        asked.append(f"{percent(share_asked(scored))} % ({condition})")
        by_group: dict[tuple[str, int], list[Scored]] = {}
        by_kind: dict[str, list[Scored]] = {}
        for image in scored:
            by_group.setdefault((image.sample.group, image.sample.label), []).append(image)
            if image.sample.label == REAL:
                by_kind.setdefault(kind(image.sample.group), []).append(image)
        everyone = contenders()
        apart += [(condition, one.name, *separation(one, by_group, trained)) for one in everyone]
        for name, own in sorted(by_kind.items(), key=lambda pair: -len(pair[1])):
            wrong.append((condition, name, str(len(own)), *(flagged(one, own) for one in everyone)))
    names = [one.name for one in contenders()]
    title = f"Families with {LARGE} images or more against all real images"
    columns = ("images", "checkpoint", "AUC", "AUC, never trained on", "found at 5 %", "real images called generated")
    note = f"Images for which `{CASCADE}` asked `{NAME}`: {', '.join(asked)}."
    return [
        Table(title, (*columns, "AUC, equal content"), tuple(apart), (note,)),
        Table('Real images with the verdict "generated"', ("images", "kind", "number", *names), tuple(wrong)),
    ]


def card(measured: Sequence[Table]) -> str:
    loaded = checkpoints.load(NAME)
    assert isinstance(loaded.model, Pair)
    npr, clip = loaded.model.combine.weight[0].tolist()
    probe, cascade = checkpoints.load(loaded.model.clip_checkpoint.partition("@")[0]), checkpoints.load(CASCADE).model
    assert isinstance(cascade, Cascade)
    first = cascade.first_checkpoint.partition("@")[0]
    parts = [
        f"# Checkpoint `{NAME}`",
        f"- SHA-256: `{loaded.sha256}`\n"
        f"- logit = {npr:.3f} NPR + {clip:.3f} CLIP {loaded.model.combine.bias.item():+.3f}, with the logits of "
        f"`{loaded.model.npr_checkpoint}` and `{loaded.model.clip_checkpoint}`.\n"
        f"- The probe `{probe.model_id}` was fitted to {probe.metadata.training_data}.\n"
        f"- NPR sees the view `{loaded.metadata.view}`, the encoder the whole image at 224x224 pixels, and the "
        f"central {loaded.model.detail}x{loaded.model.detail} pixels of an image with a side longer than 448. Licence: "
        f"{loaded.metadata.licence}.\n"
        f"- {calibrated(loaded.metadata.calibration)}",
        f"`{CASCADE}` scores every image with `{first}`, and asks `{NAME}` where the logit of `{first}` lies in "
        f"{cascade.low:.3f} .. {cascade.high:.3f}. The checkpoint has thresholds of its own.",
        "A score is a hint, not a proof. The encoder also judges what a picture shows. So a picture by people that "
        'shows what generators often make can get the verdict "generated", and a generated picture that looks like a '
        "photograph can pass.",
        "All numbers are in percent, with 95 % intervals in brackets. The images come from repositories that no "
        "training set uses. But the weights and the constant above, the thresholds, the blocks of the encoder and the "
        "penalty of the probe were chosen on these images, so the numbers of the pair and of the probe are a little "
        "too good. "
        '"AUC, equal content": families whose real and generated images show the same things, measured against these '
        "real images alone.",
        *(table.markdown().rstrip() for table in measured),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--training", type=Path, required=True)
    arguments = parser.parse_args()
    samples = find_samples(arguments.validation)
    by_source = {str(sample.path): sample for sample in samples}
    scorers = [Scorer(checkpoints.load(name), dtype=torch.float32) for name in (NAME, CASCADE)]
    found = {}
    for condition, steps in CONDITIONS.items():
        change = Perturbation.parse(steps) if steps else None
        scored: list[dict[str, Row]] = []
        for scorer in scorers:
            rows: list[Row] = []
            evaluate(scorer, samples, perturbation=change, on_row=rows.append)
            scored.append({row.source: row for row in rows if row.error is None})
        pair, cascade = scored
        found[condition] = [Scored(by_source[name], pair[name], cascade[name]) for name in pair if name in cascade]
    trained = {path.name for path in arguments.training.iterdir()}
    print(card(tables(found, trained)), end="")


if __name__ == "__main__":
    main()
