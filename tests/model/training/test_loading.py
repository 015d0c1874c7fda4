"""The images of a step depend on (seed, epoch, position) only, not on processes, workers or interruptions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npr_model.datasets import checks
from npr_model.datasets.folders import FAKE, REAL, DatasetError, Sample
from npr_model.errors import InputError
from npr_model.training.config import PRESETS, TrainConfig
from npr_model.training.loading import BalancedBatches, Loader, TrainingCrops
from tests.model.conftest import encoded, noise

SAMPLES = [Sample(Path(f"{n}.png"), REAL if n < 10 else FAKE, "group") for n in range(13)]
CPU = torch.device("cpu")


def batches(samples=SAMPLES, rank=0, size=1, **values) -> BalancedBatches:
    return BalancedBatches(samples, TrainConfig(**{"batch_size": 4, **values}), rank, size)


def epoch(sampler: BalancedBatches, number: int = 0, first_step: int = 0) -> list[list[tuple[int, int, int]]]:
    sampler.start(number, first_step)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def joined(lists: Iterable[list]) -> list:
    return list(itertools.chain.from_iterable(lists))


def test_classes_are_balanced_and_every_sample_is_used():
    orders = [batches().order(number) for number in range(2)]
    for order in orders:
        counts = Counter(order.tolist())
        assert len(order) == 20 and all(counts[number] == 1 for number in range(10))
        assert sorted(counts[number] for number in range(10, 13)) == [3, 3, 4]
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[0].tolist() != batches(seed=1).order(0).tolist()
    assert orders[0].tolist() == batches().order(0).tolist()


@pytest.mark.parametrize(("balance", "drawn"), [(0, (16, 4)), (0.5, (40 / 3, 20 / 3)), (1, (10, 10))])
def test_groups_are_balanced(balance, drawn):
    """Generated images of a group of 8 and of one of 2, beside 20 real ones: 20 are drawn of each class."""
    fakes = [Sample(Path(f"{n}.png"), FAKE, "large" if n < 8 else "small") for n in range(10)]
    samples = [*(Sample(Path(f"{n}.jpg"), REAL, "photographs") for n in range(20)), *fakes]
    sampler = batches(samples, balance_groups=balance)
    orders = [sampler.order(number) for number in range(300)]
    for order in orders:
        assert sorted(order[order < 20].tolist()) == list(range(20)) and len(order) == 40
    groups = Counter(samples[number].group for order in orders for number in order)
    assert groups["large"] / 300 == pytest.approx(drawn[0], rel=0.02)
    assert groups["small"] / 300 == pytest.approx(drawn[1], rel=0.02)
    images = Counter(number for order in orders for number in order[order >= 20])
    assert max(images[n] for n in range(20, 28)) < 1.1 * min(images[n] for n in range(20, 28))


def test_batches_cut_the_order_and_a_resumed_epoch_has_the_same_ones():
    sampler = batches()
    parts = epoch(sampler, 1)
    assert [len(draws) for draws in parts] == [4] * 5
    order = sampler.order(1)
    assert joined(parts) == [(order[position], 1, position) for position in range(20)]
    assert epoch(sampler, 1, first_step=3) == parts[3:]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_and_parts_share_the_same_batches(size, accumulation):
    values = {"batch_size": 8, "accumulation": accumulation}
    shares = [epoch(batches(rank=rank, size=size, **values), 2, first_step=1) for rank in range(size)]
    parts = [joined(parts) for parts in zip(*shares, strict=True)]
    whole = epoch(batches(batch_size=8), 2, first_step=1)
    assert joined(parts) == joined(whole)
    assert [len(part) for part in parts] == [8 // accumulation] * accumulation


def test_batches_that_do_not_fit():
    with pytest.raises(InputError, match="an epoch has 20 images, fewer than one batch of 32: lower batch_size"):
        batches(batch_size=32)
    with pytest.raises(InputError, match="a batch of 4 cannot be divided equally among 3 processes in 1 parts"):
        batches(size=3)


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """Real images are JPEGs of several sizes, generated ones PNGs of one size."""
    made = []
    for number in range(4):
        for label, name, size, format in (
            (REAL, f"{number}.jpg", (50 + 7 * number, 60), "JPEG"),
            (FAKE, f"{number}.png", (40, 40), "PNG"),
        ):
            path = tmp_path / name
            path.write_bytes(encoded(noise(*size, seed=number + 10 * label), format))
            made.append(Sample(path, label, "x"))
    return made


def swapped(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, label=FAKE if sample.label == REAL else REAL) for sample in samples]


@pytest.mark.parametrize("preset", PRESETS)
def test_crops_do_not_depend_on_the_class(samples, preset):
    """Swapping all labels leaves the pixels unchanged."""
    config = replace(PRESETS[preset], crop_size=24, resize=PRESETS[preset].resize and 30)
    for number in range(len(samples)):
        for position in range(4):
            (pixels, label), (others, other) = (
                TrainingCrops(listed, config)[number, 0, position] for listed in (samples, swapped(samples))
            )
            np.testing.assert_array_equal(pixels, others)
            assert label != other


def test_crops_depend_on_seed_epoch_and_position(samples):
    config = replace(PRESETS["wild"], crop_size=24)
    draws = [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    crops = [TrainingCrops(samples, config)[draw][0] for draw in draws]
    crops.append(TrainingCrops(samples, replace(config, seed=1))[0, 0, 0][0])
    assert len({crop.tobytes() for crop in crops}) == 4
    np.testing.assert_array_equal(crops[0], TrainingCrops(samples, config)[0, 0, 0][0])


def test_matched_classes_have_one_size_and_one_codec(samples, monkeypatch):
    """Every PNG is sent through the codec of a JPEG, and every JPEG is cut to the size of a PNG."""
    seen = []
    monkeypatch.setattr(
        "npr_model.training.loading.augment", lambda pixels, config, random, partner: seen.append(partner) or pixels
    )
    crops = TrainingCrops(samples, TrainConfig(match_classes=True))
    for number, sample in enumerate(samples):
        for position in range(8):
            crops[number, 0, position]
            partner = seen.pop()
            assert (partner.quantization is None) == (sample.label == REAL)
            assert (partner.height == 40) == (sample.label == REAL)


def test_loader_gives_the_same_for_any_number_of_workers(samples):
    runs = []
    for workers in (0, 2):
        config = replace(PRESETS["wild"], crop_size=24, batch_size=4, workers=workers)
        sampler = BalancedBatches(samples, config)
        loader = Loader(samples, sampler, CPU)
        epochs = []
        for number, first_step in ((0, 0), (1, 0), (1, 1)):
            sampler.start(number, first_step)
            epochs.append(list(loader))
        runs.append(epochs)
        assert loader.waited > 0
        pixels, labels = epochs[0][0]
        assert pixels.shape == (4, 3, 24, 24) and pixels.dtype == torch.uint8
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert labels.shape == (4, 1) and labels.dtype == torch.float32
        assert [len(parts) for parts in epochs] == [2, 2, 1]
        assert torch.equal(epochs[2][0][0], epochs[1][1][0])  # the rest of a resumed epoch
    for first, second in zip(joined(runs[0]), joined(runs[1]), strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("match_classes", [False, True])
def test_a_bad_file_is_named(samples, workers, match_classes):
    config = TrainConfig(crop_size=24, batch_size=8, workers=workers, match_classes=match_classes)
    samples[0].path.write_bytes(b"")
    loader = Loader(samples, BalancedBatches(samples, config), CPU)
    with pytest.raises(DatasetError, match=r"0\.jpg: the (file is empty|header cannot be read)"):
        list(loader)


def test_inspection(tmp_path):
    listed = []
    for name, label, format in (("a", REAL, "PNG"), ("b", REAL, "JPEG"), ("c", FAKE, "PNG")):
        (tmp_path / name).write_bytes(encoded(noise(8, 8), format))
        listed.append(Sample(tmp_path / name, label, "x"))
    read = []
    inspection = checks.inspect_samples(listed, 2, 1, read.append)
    assert str(inspection) == "0_real: 1 PNG, 1 JPEG; 1_fake: 1 PNG" and inspection.classes_differ
    assert len(inspection.decoders) == 2 and sum(read) == 3
    assert not checks.inspect_samples([listed[0], listed[2]], 2, 1).classes_differ
