"""Each kind of up-sampling leaves its trace, and decoders learn to resemble photographs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from npr_model.simulation import KINDS, autoencoders
from npr_model.simulation.autoencoders import PatchDiscriminator, fit, psnr
from npr_model.simulation.simulator import Draw
from tests.model.simulation.photos import crops, number_of, within_cells

pytestmark = pytest.mark.xdist_group("simulation")  # most use the same decoders, which take long to train


def residual_spectrum(images: torch.Tensor) -> torch.Tensor:
    """(S, S): power of the windowed Laplacian, S a multiple of 8, averaged over images and channels."""
    laplacian = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
    x = F.conv2d(images.float().flatten(0, 1)[:, None], laplacian)[:, 0]
    side = x.shape[-1] // 8 * 8
    window = torch.hann_window(side)
    return torch.fft.fft2(x[:, :side, :side] * window[:, None] * window).abs().square().mean(0)


def peak(spectrum: torch.Tensor, rows: float, columns: float) -> float:
    """Power at a frequency (in cycles a pixel) over the median of what is around it, 4 to 7 bins away."""
    side = len(spectrum)
    centred = spectrum.roll((8 - round(rows * side), 8 - round(columns * side)), (0, 1))
    around = torch.cat([centred[1:5, 1:16].flatten(), centred[12:16, 1:16].flatten()])
    return (centred[8, 8] / around.median()).item()


def highest(spectrum: torch.Tensor) -> float:
    """Mean power of the frequencies within 0.04 of the Nyquist frequency in both directions."""
    low = math.ceil(0.46 * len(spectrum))
    return spectrum[low : len(spectrum) - low + 1, low : len(spectrum) - low + 1].mean().item()


def test_photographs_have_no_traces():
    images = crops(32, 136, seed=1)
    spectrum = residual_spectrum(images)
    for frequency in [(0.5, 0.5), (0, 0.5), (0.5, 0), (0.25, 0.25)]:
        assert peak(spectrum, *frequency) < 2
    assert 0.9 < within_cells(images) < 1.1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_traces(simulator, kind, depth):
    images = crops(4, 136, seed=1)
    fakes = simulator.apply(images, Draw(number_of(simulator, kind, depth), (0, 0), 1.0))
    before, after = residual_spectrum(images), residual_spectrum(fakes)
    if kind == "nearest":  # pairs of equal pixels, blurred by the next convolution
        assert within_cells(fakes) < 0.5
    if kind in ("bilinear", "bicubic", "sinc"):  # interpolation leaves nothing at the highest frequencies
        assert highest(after) < 0.1 * highest(before)
    if kind in ("transposed", "subpixel"):  # a chequerboard at the grid's own frequencies
        assert peak(after, 0.5, 0.5) > 10
        if depth == 2:
            assert peak(after, 0.25, 0.25) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_fakes_resemble_their_photographs(simulator, kind):
    assert psnr(simulator.decoders[number_of(simulator, kind, 1)], crops(16, 64, seed=1)) > 22
    assert psnr(simulator.decoders[number_of(simulator, kind, 2)], crops(16, 64, seed=1)) > 18


@pytest.mark.parametrize("kind", KINDS)
def test_training_improves(simulator, kind):
    little = fit(kind, 1, crops(64, 32), steps=2)
    trained = simulator.decoders[number_of(simulator, kind, 1)]
    assert psnr(trained, crops(16, 32)) > psnr(little, crops(16, 32)) + 0.3


def test_the_discriminator_recognises_soft_images_and_how_to_sharpen_them():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    sharp = crops(16, 48) / 255
    soft = F.avg_pool2d(sharp, 3, 1, 1)
    for _ in range(60):
        discriminator.step(optimizer, sharp[:8], soft[:8])
    with torch.no_grad():
        assert (discriminator(sharp[8:]).mean((1, 2, 3)) > discriminator(soft[8:]).mean((1, 2, 3))).float().mean() > 0.7
    x = soft[8:].requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).mean(), x)
    assert (F.cosine_similarity(gradient.flatten(1), (sharp[8:] - x).flatten(1)) > 0).all()


def test_decoders_are_trained_against_the_discriminator(monkeypatch):
    decoded = []
    for weight in (0.0, 0.05):
        monkeypatch.setattr(autoencoders, "_ADVERSARIAL", weight)
        decoded.append(fit("nearest", 1, crops(8, 32), steps=4)(crops(2, 32) / 255))
    assert not torch.equal(*decoded)
