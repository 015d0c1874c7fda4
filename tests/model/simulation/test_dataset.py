"""Data sets treat both classes alike, and their manifest says what was made from what."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npr_model.datasets.folders import find_samples, require_both_classes
from npr_model.imaging.codecs import Codec
from npr_model.simulation import KINDS, dataset
from npr_model.simulation.dataset import DatasetWriter
from npr_model.simulation.photographs import split, to_pixels, to_tensor
from npr_model.simulation.simulator import Draw
from tests.model.simulation.photos import Doubler, number_of, rows_of

pytestmark = pytest.mark.xdist_group("simulation")  # most use the same decoders, which take long to train


def tree(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_dataset_treats_both_classes_alike(simulator, photographs, tmp_path):
    output = tmp_path / "out"
    writer = DatasetWriter(
        output, simulator, (Doubler(),), crop_size=48, codec=Codec.parse("jpeg:70-95", ranges=True), workers=2
    )
    problems, parts = {}, split(photographs, 0.3)
    counts = {"train": 28, "validation": 14}
    assert writer.write(parts, counts, problems=problems) == counts
    assert problems == {}
    rows = rows_of(output)
    listed = {row[name] for row in rows for name in ("real", "fake")}
    assert listed | {"manifest.csv"} == set(tree(output))
    assert Counter(row["kind"] for row in rows) == dict.fromkeys((*KINDS, "test-doubler"), 6)  # of 42
    qualities = set()
    for row in rows:
        tables = []
        for name in ("real", "fake"):
            with Image.open(output / row[name]) as image:
                assert image.format == "JPEG" and image.size == (48, 48)
                tables.append(image.quantization)
        assert tables[0] == tables[1]
        qualities.add(row["codec"])
        assert (output / row["real"]).read_bytes() != (output / row["fake"]).read_bytes()
    assert len(qualities) > 5
    for part in ("train", "validation"):
        samples = find_samples(output / part)
        require_both_classes(samples, part)
        assert {sample.group for sample in samples} == {*KINDS, "test-doubler"}
    by_part = {part: {row["photograph"] for row in rows if row["part"] == part} for part in parts}
    assert len(by_part["train"]) == 4 and len(by_part["validation"]) == 2
    assert not by_part["train"] & by_part["validation"]


def test_manifest_says_what_was_made_from_what(simulator, photographs, tmp_path):
    output = tmp_path / "out"
    writer = DatasetWriter(output, simulator, crop_size=48, real_variety=False)
    writer.write({"": photographs}, {"": 20}, problems={})
    for row in rows_of(output):
        left, top, side, strength, scale = (float(row[name]) for name in ("left", "top", "side", "strength", "scale"))
        assert side == 48 and 0.6 <= strength <= 1 and row["family"] == "simulated" and row["codec"] == "png"
        photograph = np.asarray(Image.open(row["photograph"]))
        real, fake = (np.asarray(Image.open(output / row[name])) for name in ("real", "fake"))
        np.testing.assert_array_equal(real, photograph[int(top) : int(top) + 48, int(left) : int(left) + 48])
        draw = Draw(
            number_of(simulator, row["up_sampling"], round(math.log2(scale))),
            (int(row["phase_top"]), int(row["phase_left"])),
            strength,
        )
        expected = to_pixels(simulator.apply(to_tensor(real), draw)).astype(int)
        assert np.abs(expected - fake).max() <= 1
        error = np.square(real.astype(float) - fake).mean()
        assert float(row["psnr"]) == pytest.approx(10 * math.log10(255**2 / error), abs=0.01)


def test_dataset_follows_the_seed_and_not_the_threads(simulator, photographs, tmp_path):
    trees = []
    for number, (workers, seed) in enumerate([(1, 0), (3, 0), (1, 1)]):
        writer = DatasetWriter(tmp_path / str(number), simulator, crop_size=48, workers=workers, seed=seed)
        writer.write({"": photographs}, {"": 12}, problems={})
        trees.append(tree(writer.output))
    assert trees[0] == trees[1] and trees[0] != trees[2]


def test_real_variety_scales_and_changes_the_photographs(simulator, photographs, tmp_path):
    writer = DatasetWriter(tmp_path / "out", simulator, crop_size=48)
    writer.write({"": photographs}, {"": 30}, problems={})
    sides = [int(row["side"]) for row in rows_of(writer.output)]
    assert 4 <= sides.count(48) <= 18 and max(sides) > 100


def test_shares(photographs, tmp_path):
    assert Counter(dataset._allocate(("a", "b", "c"), 10, {"a": 3, "c": 1}, np.random.default_rng())) == {
        "a": 8,
        "c": 2,
    }
    assert Counter(dataset._allocate(("a", "b"), 7, {}, np.random.default_rng())).total() == 7
