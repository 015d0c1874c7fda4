"""Batches of simulated fakes: their size, their seed, and how they vary; and decoders in files."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from npr_model import simulation
from npr_model.simulation import KINDS, Autoencoder, Simulator
from npr_model.simulation.simulator import Draw, SimulatorError
from tests.model.conftest import noise
from tests.model.simulation.photos import crops, number_of, seeded, within_cells

pytestmark = pytest.mark.xdist_group("simulation")  # most use the same decoders, which take long to train


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 3)], ids=str)
def test_batches_keep_size_and_dtype_and_follow_the_seed(simulator, dtype, size):
    images = torch.from_numpy(noise(9 * size[0], size[1])).reshape(9, *size, 3).permute(0, 3, 1, 2)
    if dtype.is_floating_point:
        images = (images.float() / 255).to(dtype)
    before, state = images.clone(), torch.get_rng_state()
    first, again, other = (simulator.simulate_batch(images, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert first.shape == images.shape and first.dtype == dtype and first.isfinite().all()
    assert first.min() >= 0 and first.max() <= (1 if dtype.is_floating_point else 255)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, images)


def test_uint8_and_float_agree(simulator):
    images = crops(6, 48)
    fakes = simulator.simulate_batch(images, seeded())
    exact = simulator.simulate_batch(images.float() / 255, seeded())
    assert (fakes.float() - 255 * exact).abs().max() <= 0.501
    for real, precise in zip(
        simulator.pair_batch(images, seeded()), simulator.pair_batch(images / 255, seeded()), strict=True
    ):
        assert (real.float() - 255 * precise).abs().max() <= 0.501


def test_batches_vary(simulator):
    """In a batch of one repeated image, groups differ in kind, depth, phase and strength."""
    draws = [simulator.draw(generator) for generator in [seeded()] for _ in range(300)]
    assert {draw.decoder for draw in draws} == set(range(len(simulator.decoders)))
    assert 0.6 <= min(draw.strength for draw in draws) < 0.62 and 0.98 < max(draw.strength for draw in draws) <= 1
    aligned = sum(draw.phase == (0, 0) for draw in draws)
    assert 120 < aligned < 240
    for depth in (1, 2):
        phases = {draw.phase for draw in draws if simulator.decoders[draw.decoder].depth == depth}
        assert phases == {(row, column) for row in range(2**depth) for column in range(2**depth)}
    fakes = simulator.simulate_batch(crops(1, 32).expand(16, -1, -1, -1), seeded())
    assert torch.equal(fakes[0], fakes[3]) and not torch.equal(fakes[3], fakes[4])
    assert simulator.simulate_batch(crops(1, 32)[:0], seeded()).shape == (0, 3, 32, 32)


def test_phase_moves_the_grid(simulator):
    nearest, images = number_of(simulator, "nearest", 1), crops(16, 64)
    assert within_cells(simulator.apply(images, Draw(nearest, (0, 0), 1.0))) < 0.5
    assert within_cells(simulator.apply(images, Draw(nearest, (0, 1), 1.0))) > 2
    assert within_cells(simulator.apply(images, Draw(nearest, (1, 0), 1.0))) < 0.5


def test_strength_mixes_the_residual(simulator):
    images = crops(4, 32) / 255
    whole, half = (simulator.apply(images, Draw(0, (0, 0), strength)) for strength in (1.0, 0.5))
    inside = (whole > 0) & (whole < 1)
    torch.testing.assert_close(half[inside], (0.5 * images + 0.5 * whole)[inside])


def test_no_trace_of_padding(simulator):
    """A flat image stays flat up to its edge."""
    images = torch.full((1, 3, 32, 32), 0.5)
    fake = simulator.apply(images, Draw(number_of(simulator, "nearest", 2), (0, 0), 1.0))
    assert (fake - fake[:, :, 16:17, 16:17]).abs().max() < 1e-4


def test_pairs_share_the_history_before_the_decoder_only(simulator):
    images = crops(200, 32)
    real, fake = simulator.pair_batch(images, seeded())
    untouched = (real == images).flatten(1).all(1)
    assert 0.3 < untouched.float().mean() < 0.75  # expected: 0.8 * 0.85**3 = 0.49
    assert not (fake == real).flatten(1).all(1).any()


def test_simulator_refuses(simulator):
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        simulator.simulate_batch(torch.zeros(2, 1, 8, 8), seeded())
    with pytest.raises(ValueError, match="unknown kind of up-sampling 'cubic'"):
        Autoencoder("cubic", 1)
    with pytest.raises(ValueError, match=r"depth must be in 1 \.\. 4, got 5"):
        Autoencoder("nearest", 5)
    with pytest.raises(ValueError, match="at least one decoder"):
        Simulator([])
    with pytest.raises(ValueError, match="strength must be"):
        Simulator([Autoencoder("nearest", 1)], strength=(0.5, 2))
    with pytest.raises(SimulatorError, match="no decoder of the kind 'cubic'"):
        simulator.select(["cubic"])
    with pytest.raises(ValueError, match="crops must be uint8 and at least 32 a side"):
        simulation.fit_simulator(crops(4, 16))


def test_decoders_are_saved_and_loaded(simulator, tmp_path):
    path = tmp_path / "decoders.safetensors"
    simulation.save(path, simulator)
    loaded = simulation.load(path)
    images = crops(8, 32)
    assert loaded.kinds == KINDS
    assert torch.equal(loaded.simulate_batch(images, seeded()), simulator.simulate_batch(images, seeded()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"text", "has no decoders"),
        (safetensors.torch.save({}), "has no decoders"),
        (safetensors.torch.save({}, {"npr_decoders": "[]"}), "at least one decoder"),
        (
            safetensors.torch.save({}, {"npr_decoders": json.dumps([{"kind": "x", "depth": 1}])}),
            "unknown kind of up-sampling 'x'",
        ),
        (safetensors.torch.save({}, {"npr_decoders": json.dumps([{"kind": "nearest", "depth": 1}])}), "Missing key"),
    ],
)
def test_bad_decoders_are_one_line(tmp_path, content, message):
    path = tmp_path / "decoders.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SimulatorError, match=message) as caught:
        simulation.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_on_the_gpu(simulator, cuda):
    images = crops(8, 64)
    on_gpu = simulation.fit_simulator(images.to(cuda), kinds=["subpixel"], depths=(1,), steps=3)
    assert on_gpu.simulate_batch(images.to(cuda), seeded()).device.type == "cuda"
    moved = Simulator([decoder for decoder in simulator.decoders]).to(cuda)
    try:
        fakes = moved.simulate_batch(images.to(cuda), seeded()).cpu()
    finally:
        moved.cpu()
    assert (fakes.float() - simulator.simulate_batch(images, seeded())).abs().max() <= 1
