"""Fits the probe of the bundled checkpoint clip-2: the detector `ojha` on whole images and on crops of them.

    python -m scripts.make_clip_head ORIGINALS CROPS -o npr_model/weights/clip-2.safetensors

ORIGINALS and CROPS hold <family>/{0_real,1_fake}. NPR_MODEL_EMBEDDINGS=FILE keeps the embeddings for later runs, which
takes most of the time: about a third of a second an image on one core.

A probe easily learns content instead of traces, as galleries of generated images show other things than folders of
photographs. Against it, every family of generators and every source of real images counts equally within its class, so
that paintings, drawings, renderings and screenshots count as much as the many photographs. The images are not changed.
With JPEG, WebP or scaling on 60 % of 3,000 images, the mean AUC of the probe on the validation images was 84.7 %
instead of 88.8 %, and after JPEG 90 84.7 % instead of 86.2 %.
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
from npr_model.imaging.views import View

VIEW = View("resize", 224)
MOST = {REAL: (18, 9), FAKE: (40, 6)}  # images of one family or source, among ORIGINALS and among CROPS
DESCRIPTION = (
    "whole images and crops that people published in 124 repositories: the output of 147 families of generators, and "
    "photographs, scans, paintings, drawings, renderings and screenshots from 76 sources"
)


def order(sample: Sample) -> str:
    """A key that sorts files in an order that means nothing, but stays the same."""
    return hashlib.sha256(sample.path.name.encode()).hexdigest()


def chosen(folders: Iterable[Path]) -> Iterator[Sample]:
    """Yield at most MOST images of each family, source and folder."""
    for number, folder in enumerate(folders):
        counts: Counter[tuple[str, int]] = Counter()
        for sample in sorted(find_samples(folder), key=order):
            counts[sample.group, sample.label] += 1
            if counts[sample.group, sample.label] <= MOST[sample.label][number]:
                yield sample


def embedding(network: Ojha, path: Path) -> tuple[np.ndarray, str] | None:
    """Return the embedding of an image, (width,) float32, and its decoder; None if it cannot be decoded."""
    try:
        decoded = decode(path.read_bytes())
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
    samples = list(chosen([arguments.originals, arguments.crops]))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        embedded = [*track(pool.map(lambda one: embedding(network, one.path), samples), "embedding", len(samples))]
    known = [(sample, *found) for sample, found in zip(samples, embedded, strict=True) if found is not None]
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
