"""The scripts behind the checkpoints of the size "fast": crops for training, and the range of doubt of a cascade."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npr_model.datasets.folders import FAKE, REAL, Sample
from npr_model.imaging.decode import decode
from scripts.checkpoints import cut_crops, make_cascade
from tests.model.conftest import noise


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="needs jpegtran, of libjpeg-turbo")
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_crops_are_parts_of_the_image(suffix, tmp_path, monkeypatch, capsys):
    """Without its outermost pixels, as a JPEG's chroma is interpolated across the edge of a crop."""
    folder = tmp_path / "originals" / "gan" / "1_fake"
    folder.mkdir(parents=True)
    images = {
        "large": noise(560, 800),
        "small": noise(120, 300),
        "tiny": noise(60, 300),
        "flat": 0 * noise(300, 300) + (200, 0, 0),
    }
    for name, pixels in images.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.{suffix}")
    (folder / f"broken.{suffix}").write_bytes((folder / f"large.{suffix}").read_bytes()[:2000])
    monkeypatch.setattr(sys, "argv", ["cut_crops.py", str(tmp_path / "originals"), str(tmp_path / "crops")])
    cut_crops.main()
    assert f"left out: gan/1_fake/broken.{suffix}: " in capsys.readouterr().out
    written = sorted((tmp_path / "crops" / "gan" / "1_fake").iterdir())
    assert [path.name for path in written] == [f"large_{suffix}_{n}.{suffix}" for n in range(5)] + [
        f"small_{suffix}_0.{suffix}"
    ]
    whole, places = decode((folder / f"large.{suffix}").read_bytes()).pixels, set()
    for path in written[:5]:
        crop = decode(path.read_bytes()).pixels
        assert crop.shape == (256, 256, 3)
        found = [
            (top, left)
            for top in range(0, 560 - 255, 16)
            for left in range(0, 800 - 255, 16)
            if np.array_equal(whole[top + 8 : top + 248, left + 8 : left + 248], crop[8:248, 8:248])
        ]
        assert len(found) == 1
        places |= set(found)
    assert len({top // 256 for top, _ in places}) == 2 and len(places) == 5
    assert decode(written[5].read_bytes()).pixels.shape == (120, 256, 3)


def test_images_in_doubt_are_chosen():
    """A first network that is blind near 0 and right elsewhere: those near 0 must go on, and hardly any others."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    samples = [Sample(Path(str(i)), [REAL, FAKE][label], "gan") for i, label in enumerate(labels)]
    second = (2 * labels - 1) * 3 + generator.normal(size=400)
    blind = generator.random(400) < 0.3
    first = np.where(blind, generator.normal(size=400) * 0.1, second)

    def auc(low, high):
        return make_cascade.mean_auc(samples, make_cascade.joined(first, second, low, high))

    low, high = make_cascade.choose(samples, [first, first], [second, second])
    assert low < high and 0.2 < make_cascade.shares([first], low, high)[0] < 0.45 and auc(low, high) > 0.99
    useless = generator.normal(size=400)
    whole = make_cascade.choose(samples, [useless, 30 * useless - 3], [second, second])
    assert make_cascade.shares([useless], *whole)[0] > 0.9
    few = make_cascade.choose(samples, [first, first / 2], [second, second], most=0.15)
    assert max(make_cascade.shares([first, first / 2], *few)) <= 0.15
    assert auc(1e9, 1e9) < auc(*few) < auc(low, high)
    with pytest.raises(SystemExit, match=r"--most 0.001 is too small: the smallest range sends 0\.0"):
        make_cascade.choose(samples, [first, first], [second, second], most=0.001)
