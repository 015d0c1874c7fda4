"""Training sets of a detector's members: disjoint, balanced, of whole groups, and always the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from npr_model.datasets.folders import FAKE, REAL, Sample
from npr_model.errors import InputError
from npr_model.training.config import TrainConfig
from npr_model.training.division import divided
from npr_model.training.loading import TrainingCrops


def samples(**groups: tuple[int, int]) -> list[Sample]:
    """Groups with so many photographs and generated images."""
    return [
        Sample(Path(f"{group}/{label}/{number}.png"), label, group)
        for group, sizes in groups.items()
        for label, size in zip((REAL, FAKE), sizes, strict=True)
        for number in range(size)
    ]


def counts(listed: list[Sample], sets: np.ndarray, count: int) -> dict[int, list[int]]:
    """For each class the number of its images in each training set."""
    drawn = Counter((sample.label, own) for sample, own in zip(listed, sets.tolist(), strict=True))
    return {label: [drawn[label, number] for number in range(count)] for label in (REAL, FAKE)}


def sets_of_groups(listed: list[Sample], sets: np.ndarray) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for sample, own in zip(listed, sets.tolist(), strict=True):
        found.setdefault(sample.group, set()).add(own)
    return found


def test_groups_are_dealt_out_whole_and_balanced():
    sizes = {"a": (60, 0), "b": (30, 0), "c": (20, 0), "d": (10, 0), "e": (0, 7), "f": (0, 5), "g": (0, 4), "h": (0, 3)}
    listed = samples(**sizes)
    sets = divided(listed, 3)
    assert all(len(own) == 1 for own in sets_of_groups(listed, sets).values())
    found = counts(listed, sets, 3)
    assert sorted(found[REAL]) == [30, 30, 60] and sorted(found[FAKE]) == [5, 7, 7]


def test_a_group_with_both_classes_keeps_them_together():
    """Otherwise a member could learn what a horse is, instead of what a generated image is."""
    listed = samples(car=(8, 8), cat=(9, 9), chair=(7, 7), horse=(6, 6), photos=(5, 0), gan=(0, 4))
    sets = divided(listed, 3)
    assert all(len(own) == 1 for own in sets_of_groups(listed, sets).values())
    found = counts(listed, sets, 3)
    assert min(found[REAL]) >= 9 and min(found[FAKE]) >= 9


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        ({"only": (12, 11)}, {REAL: [2, 2, 2, 3, 3], FAKE: [2, 2, 2, 2, 3]}),
        ({"photos": (50, 0), "gan": (0, 10)}, {REAL: [10] * 5, FAKE: [2] * 5}),
        ({"a": (50, 0), "b": (5, 0), "gan": (0, 5)}, {REAL: [5, 12, 12, 13, 13], FAKE: [1] * 5}),
        ({"a": (3, 90), "b": (2, 1)}, {REAL: [1] * 5, FAKE: [1, 22, 22, 23, 23]}),
    ],
)
def test_too_few_groups_are_cut_into_disjoint_pieces(groups, sizes):
    listed = samples(**groups)
    found = counts(listed, divided(listed, 5), 5)
    assert {label: sorted(own) for label, own in found.items()} == sizes


@pytest.mark.parametrize("seed", range(30))
def test_every_training_set_has_both_classes(seed):
    random = np.random.default_rng(seed)
    groups = {str(n): tuple(random.integers(0, 9, 2) * random.integers(0, 2, 2)) for n in range(12)}
    listed = samples(**groups, last=(5, 5))
    assert min(map(min, counts(listed, divided(listed, 5), 5).values())) > 0


def test_whole_groups_do_not_depend_on_the_order_of_the_files():
    listed = samples(**{f"g{n}": (4 + n % 3, 0) if n % 2 else (0, 4) for n in range(12)})
    order = np.random.default_rng(0).permutation(len(listed))
    assert divided([listed[n] for n in order], 5).tolist() == divided(listed, 5)[order].tolist()


def test_a_class_with_fewer_images_than_training_sets_is_refused():
    with pytest.raises(InputError, match=r"each of the 3 networks .* the training data has only 2 real images"):
        divided(samples(a=(2, 8)), 3)


def test_images_are_matched_within_their_training_set(monkeypatch):
    listed = samples(a=(4, 4), b=(4, 4), c=(4, 4))
    monkeypatch.setattr("npr_model.detectors.gandetection.GANDetection.training_sets", 3)
    crops = TrainingCrops(listed, TrainConfig(detector="gandetection", match_classes=True))
    for sample, own in zip(listed, crops.sets.tolist(), strict=True):
        others = crops.others[sample.label, own]
        assert Counter((other.group, other.label != sample.label) for other in others) == {(sample.group, True): 4}
