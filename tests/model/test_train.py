"""Training learns, is reproducible, balances the classes, and fails early in one line."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from npr_model import checkpoints, datasets
from npr_model.datasets import DatasetError
from npr_model.errors import InputError
from npr_model.evaluate import collect
from npr_model.images import View
from npr_model.train import BalancedSampler, TrainingCrops, TrainOptions, augment, train
from tests.model.conftest import noise

SMALL = {"batch_size": 8, "crop_size": 24, "workers": 0}


def test_learns_and_writes_loadable_checkpoints(labelled, tmp_path):
    root = labelled({"train/0_real": 12, "train/1_fake": 8, "held/gan/1_fake": 4, "held/photos/0_real": 4})
    options = TrainOptions(epochs=6, learning_rate=1e-3, view=View("crop", 24), **SMALL)
    samples, held_out = datasets.find_samples(root / "train"), collect([root / "held"])
    metadata = checkpoints.Metadata(name="tiny", training_data="noise")
    epochs, seen = [], []
    chosen = train(
        samples,
        tmp_path / "run",
        options,
        metadata=metadata,
        validation=held_out,
        on_batch=lambda count, loss: seen.append(count),
        on_epoch=epochs.append,
    )
    assert chosen == tmp_path / "run" / "best.safetensors"
    assert sum(seen) == 6 * 24
    assert epochs[-1].loss < 0.5 * epochs[0].loss and epochs[-1].accuracy > 0.9
    best = max(epoch.score for epoch in epochs)
    assert best == 1.0
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in history] == [epoch.loss for epoch in epochs]
    for name in ("best", "last"):
        loaded = checkpoints.load(tmp_path / "run" / f"{name}.safetensors").metadata
        assert (loaded.name, loaded.training_data, str(loaded.view)) == ("tiny", "noise", "crop:24")
        assert loaded.decoder.startswith("pillow ")


def test_reproducible_and_independent_of_workers(labelled, tmp_path):
    root = labelled({"0_real": 4, "1_fake": 4})
    losses = []
    for workers in (0, 2):
        options = TrainOptions(epochs=2, jpeg_probability=0.5, **{**SMALL, "batch_size": 4, "workers": workers})
        run = []
        chosen = train(datasets.find_samples(root), tmp_path / str(workers), options, on_epoch=run.append)
        assert chosen.name == "last.safetensors"
        losses.append([epoch.loss for epoch in run])
    assert losses[0] == losses[1]


def test_sampler_balances_classes_and_uses_every_sample():
    sampler = BalancedSampler([0] * 10 + [1] * 3, seed=0)
    epochs = [list(sampler) for _ in range(2)]
    for draws in epochs:
        assert len(draws) == len(sampler) == 20
        counts = Counter(index for index, _ in draws)
        assert all(counts[index] == 1 for index in range(10))
        assert sorted(counts[index] for index in range(10, 13)) == [3, 3, 4]
        assert len({seed for _, seed in draws}) == 20
    assert epochs[0] != epochs[1]
    assert epochs == [list(s) for s in [BalancedSampler([0] * 10 + [1] * 3, seed=0)] * 2]


def test_augmentation():
    pixels = noise(40, 50)
    options = TrainOptions(crop_size=24)
    crops = [augment(pixels, options, np.random.default_rng(seed)) for seed in range(40)]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (24, 24, 3))[:, :, 0]
    places, flips = set(), 0
    for crop in crops:
        assert crop.shape == (24, 24, 3) and crop.dtype == np.uint8
        plain = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
        flipped = np.argwhere((windows == crop[:, ::-1]).all(axis=(2, 3, 4)))
        assert len(plain) + len(flipped) == 1
        flips += len(flipped)
        places.add(tuple((plain if len(plain) else flipped)[0] % 2))
    assert 5 < flips < 35
    assert len(places) == 4  # every phase of the cells
    always = TrainOptions(crop_size=24, jpeg_probability=1.0, jpeg_quality=(60, 60))
    encoded = augment(pixels, always, np.random.default_rng(0))
    assert not np.array_equal(encoded, crops[0]) and np.abs(encoded.astype(int) - crops[0]).mean() < 60


def test_small_images_are_tiled(labelled):
    samples = datasets.find_samples(labelled({"0_real": 1}, size=10))
    pixels, label = TrainingCrops(samples, TrainOptions(crop_size=24), grid_size=2)[0, 7]
    assert pixels.shape == (24, 24, 3) and label == datasets.REAL
    np.testing.assert_array_equal(pixels[10:20], pixels[:10])


def test_a_file_that_breaks_during_training_is_named(labelled, tmp_path):
    root = labelled({"0_real": 2, "1_fake": 2})

    def break_it(epoch):
        (root / "0_real/1.png").write_bytes(b"")

    with pytest.raises(DatasetError, match=r"0_real/1\.png: the file is empty"):
        options = TrainOptions(epochs=3, **{**SMALL, "batch_size": 2})
        train(datasets.find_samples(root), tmp_path / "run", options, on_epoch=break_it)
    assert checkpoints.load(tmp_path / "run" / "last.safetensors")


def test_early_errors(labelled, tmp_path):
    root = labelled({"0_real": 2, "1_fake": 2})
    samples, options = datasets.find_samples(root), TrainOptions(**SMALL)
    with pytest.raises(DatasetError, match="the training data has no images in 1_fake folders"):
        train(samples[:2], tmp_path / "run", options)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "last.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"already holds last\.safetensors; choose another"):
        train(samples, tmp_path / "used", options)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"output folder .* cannot be used: File exists"):
        train(samples, tmp_path / "file", options)
    (root / "0_real/0.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="1 of 4 images cannot be used, repair or remove them"):
        train(samples, tmp_path / "run", options)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"crop_size": 4},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"jpeg_probability": 1.5},
        {"jpeg_quality": (90, 60)},
        {"jpeg_quality": (0, 60)},
        {"workers": -1},
    ],
    ids=str,
)
def test_bad_options(values):
    with pytest.raises(InputError, match="must"):
        TrainOptions(**values)
