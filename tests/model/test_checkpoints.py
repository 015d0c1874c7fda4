"""Checkpoints keep weights and metadata exactly, read the authors' layout, and refuse the rest in one line."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle

import pytest
import safetensors.torch
import torch

from npr_model import checkpoints, weights
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors.npr import NPRDetector
from npr_model.imaging.views import View
from npr_model.verdicts import Calibration
from tests.model.conftest import make_detector


def assert_same_weights(model, other):
    expected = other.state_dict()
    assert list(model.state_dict()) == list(expected)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_round_trip(tmp_path):
    torch.manual_seed(0)
    model = NPRDetector(grid_size=3, anchor="mean", scale=0.5, pixel_std=(0.1, 0.2, 0.3))
    metadata = Metadata(
        name="three",
        view=View("crop", 96),
        decoder="simplejpeg 1.9.0",
        training_data="noise",
        calibration=Calibration(0.25, -1.0, 1.5, "by hand"),
        licence="CC0-1.0",
        training={"epochs": 3, "betas": [0.9, 0.999]},
    )
    path = tmp_path / "three.safetensors"
    checkpoints.save(path, model, metadata)
    loaded = checkpoints.load(path)
    assert_same_weights(loaded.model, model)
    assert not loaded.model.training
    assert (loaded.model.grid_size, loaded.model.anchor, loaded.model.scale) == (3, "mean", 0.5)
    assert tuple(loaded.model.pixel_std) == (0.1, 0.2, 0.3)
    for field in ("name", "view", "decoder", "training_data", "calibration", "licence", "classes", "training"):
        assert getattr(loaded.metadata, field) == getattr(metadata, field)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.model_id == f"three@{loaded.sha256[:12]}"
    assert os.listdir(tmp_path) == ["three.safetensors"]


@pytest.mark.parametrize("layout", ["bare", "model", "module.", "model, module."])
def test_authors_layout(tmp_path, layout):
    model = make_detector()
    state = model.state_dict()
    if "module." in layout:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    path = tmp_path / "NPR.pth"
    torch.save({"model": state, "epoch": 3} if "model" in layout.split(", ") else state, path)
    loaded = checkpoints.load(path)
    assert_same_weights(loaded.model, model)
    assert loaded.metadata == Metadata()
    assert loaded.model_id.startswith("NPR@")


def test_safetensors_without_metadata(tmp_path):
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(make_detector().state_dict(), path)
    assert checkpoints.load(path).metadata == Metadata()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be written: No space left on device"):
        checkpoints.save(path, make_detector(), Metadata())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def state_with(**changes) -> dict:
    return NPRDetector().state_dict() | changes


def without(state: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name not in names}


BAD_PTH = {
    "missing name": (lambda: without(state_with(), "fc1.bias"), "missing fc1.bias"),
    "unexpected names": (
        lambda: state_with(**{f"layer3.{i}.weight": torch.zeros(1) for i in range(5)}),
        "unexpected layer3.0.weight, layer3.1.weight, layer3.2.weight and 2 more",
    ),
    "wrong shape": (
        lambda: state_with(**{"fc1.weight": torch.zeros(1000, 512)}),
        r"fc1.weight is \(1000, 512\) instead of \(1, 512\)",
    ),
    "NaN": (lambda: state_with(**{"fc1.bias": torch.full((1,), torch.nan)}), "NaN or infinite weights: fc1.bias"),
    "a tensor": (lambda: torch.zeros(3), "holds a Tensor, not a state dict"),
    "a number inside": (lambda: state_with(lr=3.0), "not a state dict: lr not a tensor"),
    "a whole module": (lambda: torch.nn.Linear(2, 2), "is a pickle that holds more than weights"),
}


@pytest.mark.parametrize("name", BAD_PTH)
def test_bad_pth_is_one_clear_line(tmp_path, name):
    content, message = BAD_PTH[name]
    path = tmp_path / "bad.pth"
    torch.save(content(), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickle_is_refused_and_not_executed(tmp_path, save):
    path, witness = tmp_path / "bad.pth", tmp_path / "executed"
    save({"model": Malicious(witness)}, path)
    with pytest.raises(CheckpointError, match="is a pickle that holds more than weights"):
        checkpoints.load(path)
    assert not witness.exists()


def with_header(metadata: dict[str, str]) -> bytes:
    return safetensors.torch.save(NPRDetector().state_dict(), metadata)


def with_json(**changes) -> bytes:
    values = json.loads(Metadata().to_json())
    architecture = values["architecture"] | changes.pop("architecture", {})
    return with_header({"npr_model": json.dumps(values | changes | {"architecture": architecture})})


BAD_FILES = {
    "empty.safetensors": (b"", "is empty"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
    "text.safetensors": (b"hello " * 9, "not a readable safetensors file"),
    "cut.safetensors": (with_header({})[:-9], "not a readable safetensors file"),
    "text.pth": (b"hello " * 9, "neither a .safetensors nor a .pth file"),
    "zip.pth": (b"PK\x03\x04" + bytes(99), "damaged or not a .pth file"),
    "json.safetensors": (with_header({"npr_model": "{"}), "bad metadata"),
    "list.safetensors": (with_header({"npr_model": "[]"}), "bad metadata: not a JSON object"),
    "nothing.safetensors": (with_header({"npr_model": "{}"}), "metadata without 'format_version'"),
    "newer.safetensors": (with_json(format_version=99), "format version 99, but this program reads up to 1"),
    "view.safetensors": (with_json(view="zoom:3"), "unknown view 'zoom:3'"),
    "band.safetensors": (with_json(calibration={"threshold": 0, "low": 1, "high": 2}), "low <= threshold <= high"),
    "key.safetensors": (with_json(calibration={"cut": 0}), "bad metadata"),
    "grid.safetensors": (with_json(architecture={"grid_size": 1}), "bad architecture .* grid_size must be at least 2"),
    "anchor.safetensors": (with_json(architecture={"anchor": 4}), "bad architecture .* anchor must be in 0 .. 3"),
    "std.safetensors": (with_json(architecture={"pixel_std": [1, 2]}), "bad architecture"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_clear_line(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_paths_that_are_not_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint 'nonsense'; bundled: "):
        checkpoints.load("nonsense")
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoints.load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoints.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"written as \.safetensors files, not model\.pth"):
        checkpoints.save(tmp_path / "model.pth", make_detector(), Metadata())


def test_bundled_checkpoints_load_by_name():
    names = weights.available()
    if not names:
        pytest.skip("no checkpoint is bundled")
    for name in names:
        loaded = checkpoints.load(name)
        assert loaded.metadata.name == name
        assert loaded.metadata.training_data and loaded.metadata.licence and loaded.metadata.decoder


@pytest.mark.parametrize(
    ("calibration", "verdicts"),
    [
        (Calibration(), {-0.1: "real", 0.0: "real", 0.1: "generated"}),
        (Calibration(1.0), {0.9: "real", 1.1: "generated"}),
        (Calibration(1.0, 0.0, 2.0), {-0.1: "real", 0.0: "uncertain", 2.0: "uncertain", 2.1: "generated"}),
        (Calibration(1.0, high=2.0), {0.9: "real", 1.5: "uncertain", 2.1: "generated"}),
    ],
    ids=str,
)
def test_verdicts(calibration, verdicts):
    assert {logit: calibration.verdict(logit) for logit in verdicts} == verdicts


@pytest.mark.parametrize("values", [(0, 1, 2), (0, -1, -0.5), (float("nan"),), (0, -float("inf"), 0)])
def test_bad_calibration(values):
    with pytest.raises(ValueError, match="low <= threshold <= high"):
        Calibration(*values)


def test_probability():
    calibration = Calibration(temperature=2.0)
    assert [calibration.probability(logit) for logit in (-1e5, 0.0, 1e5)] == [0.0, 0.5, 1.0]
    assert calibration.probability(2.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert calibration.probability(-2.0) == pytest.approx(1 / (1 + math.exp(1)))
