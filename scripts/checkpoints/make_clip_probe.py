"""Fits the probe of the bundled checkpoint clip-3: the detector `ojha` on whole images and on crops of them.

    python -m scripts.checkpoints.make_clip_probe ORIGINALS CROPS -o npr_model/weights/clip-3.safetensors

ORIGINALS and CROPS hold <family>/{0_real,1_fake}. NPR_MODEL_EMBEDDINGS=FILE keeps the embeddings for later runs, which
takes most of the time: 0.1 to 0.3 seconds an image on one core, for 11,700 images.

A probe easily learns content instead of traces, as galleries of generated images show other things than folders of
photographs. Against it, every family of generators and every source of real images counts equally within its class, so
that paintings, drawings, renderings and screenshots count as much as the many photographs.

Each crop is used as it is, and saved as JPEG with a quality that its name decides, so that the probe knows traces that
JPEG leaves. Half of the crops are also scaled to half their size, as the encoder sees small images enlarged.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.datasets.folders import FAKE, REAL, Sample, find_samples
from npr_model.detectors.ojha import Ojha
from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.perturbations import Perturbation
from npr_model.imaging.views import View

VIEW = View("resize", 224)
MOST = {REAL: 18, FAKE: 40}  # of ORIGINALS, images of one family or source
QUALITIES = range(55, 96)  # of JPEG
DESCRIPTION = (
    "whole images and crops that people published in 124 repositories: the output of 147 families of generators, and "
    "photographs, scans, paintings, drawings, renderings and screenshots from 76 sources"
)


def order(sample: Sample) -> str:
    """A key that sorts files in an order that means nothing, but stays the same."""
    return hashlib.sha256(sample.path.name.encode()).hexdigest()


def quality(sample: Sample) -> int:
    """The JPEG quality of the second copy of a crop."""
    return QUALITIES[int(order(sample), 16) % len(QUALITIES)]


def drawn(originals: Path, crops: Path) -> Iterator[tuple[Sample, str]]:
    """Yield the images, each with the change that is made to it (a :class:`Perturbation` as text; empty for none).

    They are at most MOST originals of each family and source, and each crop two or three times.
    """
    counts: Counter[tuple[str, int]] = Counter()
    for sample in sorted(find_samples(originals), key=order):
        counts[sample.group, sample.label] += 1
        if counts[sample.group, sample.label] <= MOST[sample.label]:
            yield sample, ""
    for sample in find_samples(crops):
        yield sample, ""
        yield sample, f"jpeg:{quality(sample)}"
        if int(order(sample), 16) % 2:
            yield sample, "resize:0.5"


def embedding(network: Ojha, path: Path, change: str) -> tuple[np.ndarray, str] | None:
    """Return the embedding of a changed image, (width,) float32, and its decoder; None if it cannot be decoded."""
    data = path.read_bytes()
    try:
        decoded = decode(Perturbation.parse(change).apply(data) if change else data)
    except ImageError:
        return None
    image = torch.from_numpy(VIEW.apply(decoded.pixels).copy()).permute(2, 0, 1)
    return network.features(image[None])[0].numpy(), decoded.decoder or ""


def balanced(samples: Iterable[Sample]) -> np.ndarray:
    """Weights (N,) by which each family counts equally in its class, and each class equally; their mean is 1."""
    keys = [(sample.label, sample.group) for sample in samples]
    counts, families = Counter(keys), Counter(label for label, _ in set(keys))
    weights = np.array([1 / counts[key] / families[key[0]] for key in keys])
    return weights / weights.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path)
    parser.add_argument("crops", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    network = Ojha()
    network.check_ready()
    images = list(drawn(arguments.originals, arguments.crops))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda image: embedding(network, image[0].path, image[1]), images)
        embedded = [*track(found, "embedding", len(images))]
    known = [(sample, *one) for (sample, _), one in zip(images, embedded, strict=True) if one is not None]
    labels = np.array([sample.label for sample, *_ in known])
    weights = balanced(sample for sample, *_ in known)
    network.fit(np.array([vector for _, vector, _ in known], np.float64), labels, weights)
    metadata = Metadata(
        name=arguments.output.stem,
        view=VIEW,
        decoder=", ".join(sorted({decoder for *_, decoder in known})),
        training_data=DESCRIPTION,
        licence="Apache-2.0",
    )
    checkpoints.save(arguments.output, network, metadata)
    print(f"{np.sum(labels == FAKE)} generated and {np.sum(labels == REAL)} real images -> {arguments.output}")


if __name__ == "__main__":
    main()
