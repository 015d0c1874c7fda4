"""Augmentations: each does what it says and depends on its random numbers only, not on the class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.filters import gaussian_blur
from npr_model.imaging.headers import Encoding
from npr_model.imaging.views import View
from npr_model.training import augmentation
from npr_model.training.augmentation import match
from npr_model.training.config import PRESETS, TrainConfig
from tests.model.conftest import encoded, noise

PLAIN = TrainConfig(crop_size=24, flip_probability=0.0)
EACH = {
    "resize": {"resize": 30},
    "rescale": {"rescale_probability": 1.0, "rescale_factor": (0.6, 0.6)},
    "flip": {"flip_probability": 1.0},
    "blur": {"blur_probability": 1.0, "blur_sigma": (1.0, 1.0)},
    "webp": {"webp_probability": 1.0, "webp_quality": (80, 80)},
    "jpeg": {"jpeg_probability": 1.0, "jpeg_quality": (60, 60)},
}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, a colour ramp with a little noise, which codecs change little."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 200 / height, columns * 200 / width, (rows + columns) * 100 / (height + width)], axis=2)
    return (ramp + random().uniform(0, 20, ramp.shape)).astype(np.uint8)


def test_without_augmentations_there_is_only_a_crop():
    pixels, places = noise(40, 50), set()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (24, 24, 3))[:, :, 0]
    for seed in range(40):
        crop = augmentation.augment(pixels, PLAIN, random(seed))
        assert crop.shape == (24, 24, 3) and crop.dtype == np.uint8 and crop.flags.c_contiguous
        ((top, left),) = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
        places.add((top % 2, left % 2))
    assert len(places) == 4  # every phase of the cells


@pytest.mark.parametrize("name", EACH)
def test_each_augmentation(name):
    config, pixels = dataclasses.replace(PLAIN, **EACH[name]), smooth(60, 50)
    crop = augmentation.augment(pixels, config, random(1))
    assert crop.shape == (24, 24, 3) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, augmentation.augment(pixels, config, random(1)))
    if name not in ("resize", "rescale"):  # these use another part of the image
        plain = augmentation.augment(pixels, PLAIN, random(1))
        difference = np.abs(crop.astype(int) - (plain[:, ::-1] if name == "flip" else plain)).mean()
        assert difference == 0 if name == "flip" else 0 < difference < 12


def test_probabilities_are_shares():
    config = dataclasses.replace(PLAIN, flip_probability=0.25, crop_size=40)
    pixels = noise(40, 40)
    flips = sum(not np.array_equal(augmentation.augment(pixels, config, random(seed)), pixels) for seed in range(400))
    assert 65 < flips < 135


def test_ranges_are_drawn_from(monkeypatch):
    drawn = {"jpeg": set(), "webp": set()}
    for name, seen in drawn.items():
        encode = getattr(augmentation, f"encode_{name}")
        monkeypatch.setattr(
            augmentation,
            f"encode_{name}",
            lambda p, quality, encode=encode, seen=seen: seen.add(quality) or encode(p, quality),
        )
    config = dataclasses.replace(
        PLAIN, webp_probability=1.0, webp_quality=(70, 72), jpeg_probability=1.0, jpeg_quality=(80, 83)
    )
    for seed in range(60):
        augmentation.augment(noise(24, 24), config, random(seed))
    assert drawn == {"jpeg": {80, 81, 82, 83}, "webp": {70, 71, 72}}


def test_resize_is_that_of_the_view():
    pixels, config = noise(37, 61), dataclasses.replace(PLAIN, resize=24)
    expected = View("resize", 24).apply(pixels)
    np.testing.assert_array_equal(augmentation.augment(pixels, config, random()), expected)


@pytest.mark.parametrize("factor", [0.3, 0.5, 1.5, 3.0])
def test_rescale_changes_the_scale(factor):
    scale = {"rescale_probability": 1.0, "rescale_factor": (factor, factor)}
    config = dataclasses.replace(PLAIN, crop_size=60, **scale)
    ramp = np.repeat(np.arange(250, dtype=np.uint8)[None, :, None], 250, axis=0).repeat(3, axis=2)
    crop = augmentation.augment(ramp, config, random()).astype(float)
    slope = np.polyfit(np.arange(40), crop[:, 10:-10].mean((0, 2)), 1)[0]
    assert slope == pytest.approx(1 / factor, rel=0.03)


def test_blur_and_small_images():
    pixels = noise(40, 40)
    spread = [gaussian_blur(pixels, sigma).std() for sigma in (0.5, 1.0, 2.0)]
    assert pixels.std() > spread[0] > spread[1] > spread[2]
    tiled = augmentation.augment(noise(10, 10), PLAIN, random())
    np.testing.assert_array_equal(tiled[10:20], tiled[:10])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_follow_from_the_random_numbers(preset):
    config = dataclasses.replace(PRESETS[preset], crop_size=32, resize=PRESETS[preset].resize and 40)
    crops = [[augmentation.augment(smooth(60, 70), config, random(seed)) for seed in range(20)] for _ in range(2)]
    np.testing.assert_array_equal(*crops)
    assert len({crop.tobytes() for crop in crops[0]}) > 15


JPEGS = {
    "quality 60, 4:2:0": {"quality": 60, "subsampling": 2},
    "quality 90, 4:2:2": {"quality": 90, "subsampling": 1},
    "quality 95, 4:4:4": {"quality": 95, "subsampling": 0},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(64, 80), (70, 91)])
def test_match_is_the_codec_of_the_partner_on_the_whole_image(tmp_path, name, size):
    """The result equals a piece of the whole image after the partner's codec."""
    path = tmp_path / "partner.jpg"
    path.write_bytes(encoded(noise(40, 33, seed=5), "JPEG", **JPEGS[name]))
    partner = augmentation.encoding_of(path)
    assert (partner.height, partner.width) == (40, 33)
    pixels = smooth(*size)
    whole = decode(encoded(pixels, "JPEG", **JPEGS[name])).pixels
    windows = np.lib.stride_tricks.sliding_window_view(whole, (40, 33, 3))[:, :, 0]
    for seed in range(20):
        matched = match(pixels, partner, random(seed))
        assert matched.shape == (40, 33, 3)
        assert (windows == matched).all(axis=(2, 3, 4)).any()


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP lossless"])
def test_a_lossless_partner_only_cuts(tmp_path, format):
    path = tmp_path / "partner"
    options = {"lossless": True} if format == "WEBP lossless" else {}
    path.write_bytes(encoded(noise(30, 100), format.split()[0], **options))
    assert augmentation.encoding_of(path) == Encoding(100, 30, format=format.split()[0])
    pixels = noise(40, 50)
    matched = match(pixels, augmentation.encoding_of(path), random())
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (30, 50, 3))[:, :, 0]
    assert matched.shape == (30, 50, 3) and (windows == matched).all(axis=(2, 3, 4)).any()


def test_other_partners(tmp_path):
    for name, image, options in (
        ("webp", noise(50, 50), {"format": "WEBP", "quality": 70}),
        ("grey", Image.fromarray(noise(50, 50)).convert("L"), {"format": "JPEG", "quality": 70}),
        ("cmyk", Image.fromarray(noise(50, 50)).convert("CMYK"), {"format": "JPEG", "quality": 70}),
    ):
        (tmp_path / name).write_bytes(encoded(image, **options))
        partner = augmentation.encoding_of(tmp_path / name)
        assert partner.lossy == (name == "webp")
        difference = np.abs(match(smooth(40, 50), partner, random()).astype(int) - smooth(40, 50)).mean()
        assert 0 < difference < 15
    for name, data in (("empty", b""), ("text", b"text" * 99), ("cut", encoded(noise(50, 50), "JPEG")[:30])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError):
            augmentation.encoding_of(tmp_path / name)
