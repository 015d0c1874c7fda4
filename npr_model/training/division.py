"""Disjoint training sets, for detectors whose members each learn from images of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npr_model.datasets.folders import CLASS_NAMES, FAKE, REAL, Sample
from npr_model.errors import InputError
from npr_model.files import natural_key


def divided(samples: Sequence[Sample], count: int) -> np.ndarray:
    """Deal the groups of a training set out to ``count`` training sets: (N,) numbers in 0 .. ``count`` - 1.

    All images of a group are in one training set: the images of a generator, or the photographs of a source. A group
    with images of both classes keeps them together, so that its content does not tell the classes apart. Groups with
    both classes are dealt first, larger ones before smaller ones, and groups of one size in natural order. Each goes to
    the training set that has the fewest images of its classes so far. A group with a large share of a class makes the
    classes unequal within training sets, as it is not cut.

    If a class has fewer groups than there are training sets, its largest groups are cut into equal pieces, in the order
    of their files, and the pieces are dealt. The training sets then share a generator or a source, but no image.

    Raises:
        InputError: A class has fewer images than there are training sets.
    """
    groups: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(number)
    # For each group the numbers of its photographs, and of its generated images.
    families = [
        [np.array([n for n in groups[name] if samples[n].label == label], np.int64) for label in (REAL, FAKE)]
        for name in sorted(groups, key=natural_key)
    ]
    cuts = np.ones(len(families), np.int64)
    for label in (REAL, FAKE):
        cuts = np.maximum(cuts, _cuts(np.array([len(family[label]) for family in families]), count, label))
    pieces = [
        piece
        for family, number in zip(families, cuts, strict=True)
        for piece in zip(*(np.array_split(images, number) for images in family), strict=True)
    ]
    sizes = np.array([[len(images) for images in piece] for piece in pieces])
    shares = sizes / sizes.sum(0)  # of the images of a class
    order = sorted(range(len(pieces)), key=lambda index: (not sizes[index].all(), -shares[index].sum()))
    loads, sets = np.zeros((count, 2)), np.empty(len(samples), np.int64)
    for index in order:
        chosen = (loads @ shares[index]).round(9).argmin()
        sets[np.concatenate(pieces[index])] = chosen
        loads[chosen] += shares[index]
    return sets


def _cuts(sizes: np.ndarray, count: int, label: int) -> np.ndarray:
    """Return into how many pieces to cut each group, given its images of a class, so that ``count`` pieces have some.

    The largest piece is as small as it can be.
    """
    if sizes.sum() < count:
        raise InputError(
            f"each of the {count} networks of this detector learns from images of its own, but the training data has "
            f"only {sizes.sum()} {CLASS_NAMES[label]} images"
        )
    cuts = np.ones(len(sizes), np.int64)
    while cuts[sizes > 0].sum() < count:
        cuts[(sizes / cuts).argmax()] += 1
    return cuts
