"""Fits the probe of the bundled checkpoint clip-1: the detector `ojha` on whole images and on crops of them.

    python -m scripts.make_clip_head ORIGINALS CROPS -o npr_model/weights/clip-1.safetensors

ORIGINALS and CROPS hold <family>/{0_real,1_fake}. NPR_MODEL_EMBEDDINGS=FILE keeps the embeddings for later runs, which
takes most of the time: about a third of a second an image on one core.

A probe easily learns content instead of traces, as galleries of generated images show other things than folders of
photographs. Against it, every family of generators and every source of real images counts equally within its class, so
that paintings, drawings, renderings and screenshots count as much as the many photographs. A random change to each
image (JPEG, WebP, scale) is drawn from its name, whatever its class.
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
from npr_model.datasets import FAKE, REAL, Sample, find_samples
from npr_model.detectors.ojha import Ojha
from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.perturbations import Perturbation
from npr_model.imaging.views import View

VIEW = View("resize", 224)
MOST = {REAL: (18, 9), FAKE: (40, 6)}  # images of one family or source, among ORIGINALS and among CROPS
IMAGES = 3000  # drawn from these
DESCRIPTION = (
    "whole images and crops that people published in 124 repositories: the output of 147 families of generators, and "
    "photographs, scans, paintings, drawings, renderings and screenshots from 76 sources"
)


def random(path: Path) -> np.random.Generator:
    """A random generator that depends on the name of a file alone."""
    return np.random.default_rng(np.frombuffer(hashlib.sha256(path.name.encode()).digest(), np.uint32))


def chosen(folders: Iterable[Path]) -> Iterator[Sample]:
    """Yield at most MOST images of each family, source and folder."""
    for number, folder in enumerate(folders):
        counts: Counter[tuple[str, int]] = Counter()
        for sample in sorted(find_samples(folder), key=lambda sample: random(sample.path).random()):
            counts[sample.group, sample.label] += 1
            if counts[sample.group, sample.label] <= MOST[sample.label][number]:
                yield sample


def change(generator: np.random.Generator) -> str:
    """Draw a perturbation; an empty text for none, which is two images in five."""
    kind, quality, factor = generator.random(), generator.integers(60, 96), generator.uniform(0.4, 1.5)
    scaled = f"resize:{factor:.2f}"
    for share, text in ((0.4, ""), (0.6, f"jpeg:{quality}"), (0.7, f"webp:{quality}"), (0.85, scaled)):
        if kind < share:
            return text
    return f"{scaled}+jpeg:{quality}"


def embedding(network: Ojha, path: Path) -> np.ndarray | None:
    """Return the embedding of a changed image, (width,) float32; None if it cannot be decoded."""
    try:
        pixels = decode(path.read_bytes()).pixels
    except ImageError:
        return None
    if text := change(random(path)):
        for step in Perturbation.parse(text).steps:
            pixels = step.apply(pixels)
    image = torch.from_numpy(VIEW.apply(pixels).copy()).permute(2, 0, 1)
    return network.features(image[None])[0].numpy()


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
    candidates = sorted(chosen([arguments.originals, arguments.crops]), key=lambda sample: random(sample.path).random())
    samples = candidates[:IMAGES]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        vectors = [*track(pool.map(lambda sample: embedding(network, sample.path), samples), "embedding", len(samples))]
    known = [(sample, vector) for sample, vector in zip(samples, vectors, strict=True) if vector is not None]
    labels = np.array([sample.label for sample, _ in known])
    weights = balanced(sample for sample, _ in known)
    network.fit(np.array([vector for _, vector in known], np.float64), labels, weights)
    metadata = Metadata(
        name=arguments.output.stem,
        view=VIEW,
        decoder=", ".join(sorted({decode(sample.path.read_bytes()).decoder or "" for sample, _ in known})),
        training_data=DESCRIPTION,
        licence="Apache-2.0",
    )
    checkpoints.save(arguments.output, network, metadata)
    print(f"{np.sum(labels == FAKE)} generated and {np.sum(labels == REAL)} real images -> {arguments.output}")


if __name__ == "__main__":
    main()
