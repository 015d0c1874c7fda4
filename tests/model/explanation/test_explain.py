"""Explanations: each map against its definition, and the command's files and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from npr_kernels import reference
from npr_model import NPRDetector, cli
from npr_model.errors import InputError
from npr_model.explanation import explain, heat_maps
from tests.model.conftest import encoded, make_detector, noise

SIZES = [(64, 64), (37, 50), (130, 290), (2, 2)]


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("network", "step"), [("paper", 8), ("fast", 16)])
@pytest.mark.parametrize("size", SIZES)
def test_maps_of_every_size(size, network, step):
    model, pixels = make_detector(size=network), noise(*size)
    explanation = explain.explain(model, pixels)
    even = tuple(side // 2 * 2 for side in size)
    assert explanation.npr.shape == (3, *even) and explanation.saliency.shape == even
    assert explanation.activation.shape == tuple(-(-side // step) for side in even)
    assert explanation.spectrum.shape == tuple(min(side, 128) for side in even)
    assert np.array_equal(explanation.npr, reference.npr(tensor(pixels))[0].numpy())
    assert explanation.logit == pytest.approx(model(tensor(pixels)).item(), rel=1e-4, abs=1e-4)
    assert explanation.activation.mean() == pytest.approx(explanation.logit, rel=1e-4, abs=1e-4)
    assert all(
        np.isfinite(values).all() for values in (explanation.activation, explanation.saliency, explanation.spectrum)
    )


@pytest.mark.parametrize(("grid_size", "anchor"), [(2, 0), (3, 4), (2, "mean"), (2, "max")])
def test_saliency_is_the_gradient(grid_size, anchor):
    torch.manual_seed(3)
    model = NPRDetector(grid_size=grid_size, anchor=anchor).eval()
    pixels = noise(24, 31, seed=4)
    explanation = explain.explain(model, pixels)
    exact = NPRDetector(grid_size=grid_size, anchor=anchor, backend="eager").double().eval()
    exact.load_state_dict(model.state_dict())
    image = tensor(pixels).double().requires_grad_()
    deviation = torch.tensor(model.pixel_std).view(3, 1, 1)
    (gradient,) = torch.autograd.grad(exact(image / 255 / deviation).sum(), image)
    height, width = explanation.saliency.shape
    expected = gradient[0].abs().amax(0)[:height, :width].numpy()
    np.testing.assert_allclose(explanation.saliency, expected, rtol=1e-3, atol=1e-3 * expected.max())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_activation_changes_only_near_a_change_of_the_image():
    """A change in one corner changes the map only near it: a value depends on at most 100 pixels around it."""
    model, pixels = make_detector(), noise(512, 512)
    before = explain.explain(model, pixels).activation
    pixels[:16, :16] = 0
    moved = np.abs(explain.explain(model, pixels).activation - before)
    assert moved[:2, :2].max() > 1e-3 and moved[24:, 24:].max() < 1e-5


def test_spectrum_of_a_wave():
    """A cosine of amplitude A has the power A**2 / 4 at each of its two frequencies, times the window's gain."""
    rows, columns = np.mgrid[:256, :384]
    wave = 10 * np.cos(2 * np.pi * (16 / 128 * columns - 32 / 128 * rows))[None]
    power = explain.spectrum(wave)
    peaks = np.argwhere(power > power.max() - 0.01)
    assert sorted(map(tuple, peaks)) == [(32, 80), (96, 48)]  # centred at (64, 64)
    window = np.hanning(130)[1:-1]
    gain = (window.sum() ** 2 / np.square(window).sum()) ** 2
    assert power.max() == pytest.approx(10 * np.log10(25 * gain), abs=0.01)


def test_spectrum_averages_tiles():
    values = np.random.default_rng(0).normal(0, 3, (3, 500, 700))
    power = explain.spectrum(values)
    assert power.shape == (128, 128) and abs(power.mean() - 10 * np.log10(9)) < 0.3
    assert power.std() < 1.5  # one tile alone: 5.6 dB


def test_too_large_for_memory(monkeypatch):
    monkeypatch.setattr(explain, "MAX_PIXELS", 63 * 64)
    with pytest.raises(InputError, match=r"64x64 pixels are too many to explain .*--view crop:1024"):
        explain.explain(make_detector(), noise(64, 64))


def test_figures_of_odd_shapes(tmp_path):
    for size in ((2, 2), (2, 300), (301, 3)):
        pixels = np.zeros((*size, 3), np.uint8)  # a flat image, whose colour scales have no range
        explanation = explain.explain(make_detector(), pixels)
        for path in [
            *heat_maps.plot_explanation(pixels, explanation, tmp_path),
            heat_maps.plot_difference(explanation, explanation, tmp_path),
        ]:
            assert min(Image.open(path).size) > 100


@pytest.fixture
def images(tmp_path):
    for name, size in (("a.png", (40, 60)), ("b.png", (40, 60)), ("c.png", (30, 60))):
        (tmp_path / name).write_bytes(encoded(noise(*size, seed=ord(name[0]))))
    (tmp_path / "bad.png").write_bytes(b"bad")
    return tmp_path


def test_command(images, checkpoint, tmp_path, capsys):
    output = tmp_path / "deep/out"
    arguments = ["explain", str(images / "a.png"), "-o", str(output), "--checkpoint", str(checkpoint)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    figures = {"npr.png", "activation.png", "saliency.png", "spectrum.png"}
    assert err == "" and {path.name for path in output.iterdir()} == figures | {"explanation.json"}
    values = json.loads((output / "explanation.json").read_text())
    assert f"logit {values['logit']:.3f}" in out and values["verdict"] in out and "other" not in values
    assert (values["width"], values["height"], values["view"], values["format"]) == (60, 40, "native", "PNG")
    assert np.mean(values["activation"]) == pytest.approx(values["logit"], abs=1e-4)
    assert values["npr"]["share_of_zeros"] == pytest.approx(0.25, abs=0.01)  # anchors are 0, and others by chance

    assert cli.main([*arguments, "--other", str(images / "b.png"), "--view", "crop:32"]) == 0
    assert {path.name for path in output.iterdir()} == figures | {"explanation.json", "difference.png"}
    values = json.loads((output / "explanation.json").read_text())
    assert values["other"]["source"].endswith("b.png") and values["view"] == "crop:32"
    assert np.shape(values["activation"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bad.png",), "bad.png: not an image"),
        (("absent.png",), "absent.png: the file cannot be read (No such file"),
        (("a.png", "--other", "c.png"), "the images are 60x40 and 60x30 pixels; --other needs equal sizes"),
        (("a.png", "--view", "crop"), "unknown view 'crop'"),
        (("a.png", "--backend", "none"), "none"),
        (("a.png", "--checkpoint", "absent"), "absent"),
    ],
)
def test_bad_input_is_one_line(images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images)
    assert cli.main(["explain", "-o", "out", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("npr: ") and err.count("\n") == 1 and message in err


def test_what_the_file_declares_is_said(checkpoint, tmp_path, capsys):
    text = PngInfo()
    text.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1")
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png", pnginfo=text)
    assert cli.main(["explain", str(tmp_path / "a.png"), "-o", str(tmp_path), "--checkpoint", str(checkpoint)]) == 0
    values = json.loads((tmp_path / "explanation.json").read_text())
    assert values["verdict"] == "generated (declared)" and values["verdict"] in capsys.readouterr().out
    assert values["declared"] == "generated" and "web UI" in values["declared_by"]


def test_a_flat_image_is_as_uncertain_as_in_screening(checkpoint, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert cli.main(["explain", str(tmp_path / "a.png"), "-o", str(tmp_path), "--checkpoint", str(checkpoint)]) == 0
    values = json.loads((tmp_path / "explanation.json").read_text())
    assert (values["verdict"], values["flags"]) == ("uncertain", "tiny flat")
