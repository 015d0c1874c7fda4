"""Quantisation scales: they are measured right and stored, and int8 logits are close to float32 logits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from npr_kernels.trunk import cpu_bottleneck
from npr_model import checkpoints, cli
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors import detector_class
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.imaging.decode import decode
from npr_model.inference import quantisation
from npr_model.inference.freeze import freeze
from npr_model.inference.quantisation import LEVELS
from tests.model.conftest import make_detector

REASON = cpu_bottleneck.unsupported_reason(torch.int8, 64)
EXAMPLES = Path(__file__).parents[3] / "examples"
needs_int8 = pytest.mark.skipif(bool(REASON), reason=str(REASON))


def pixels(count: int, height: int = 64, width: int = 48) -> torch.Tensor:
    """Smooth patches with different amounts of noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (height, width), mode="bilinear")
    noise = torch.randn(count, 3, height, width, generator=generator) * torch.linspace(0.01, 0.2, count).view(
        -1, 1, 1, 1
    )
    return ((smooth + noise).clamp(0, 1) * 255).byte()


@pytest.fixture(params=["paper", "fast"])
def detector(request):
    model = make_detector(size=request.param)
    model.activation_steps = quantisation.measure_steps(model, pixels(16).split(3))
    return model


def test_steps_cover_nearly_all_images(detector):
    batch, averages = pixels(16), detector.size == "fast"
    with torch.no_grad():
        pooled = detector.pool(F.max_pool2d(F.relu(detector.bn1(detector.conv1(batch))), 3, 2, 1))
        x = detector.layer1[0](pooled)
        first = F.relu(detector.layer1[1].bn1(detector.layer1[1].conv1(x)))
    measured = {"pool.out": pooled} if averages else {}
    for name, activation in (measured | {"layer1.0.out": x, "layer1.1.first": first}).items():
        steps, largest = detector.activation_steps[name], activation.amax((2, 3))
        reached = (largest <= LEVELS * steps).double().mean(0)
        assert reached.min() >= 0.9 and steps.min() > 0
        exact = largest.quantile(quantisation.SHARE, 0) / LEVELS
        rounding = 1e-6 * exact.max().item()  # of sums, which batches of other sizes add in another order
        torch.testing.assert_close(steps, exact.clamp(min=quantisation.LEAST * exact.max()), rtol=1e-5, atol=rounding)
    assert detector.activation_steps.keys() == quantisation.expected_steps(detector).keys()
    assert ("layer1.0.first" in detector.activation_steps) == averages == ("pool.out" in detector.activation_steps)
    assert f"layer2.{len(detector.layer2) - 1}.out" not in detector.activation_steps
    with pytest.raises(InputError, match="no images"):
        quantisation.measure_steps(detector, [])


@needs_int8
def test_larger_activations_than_measured_are_not_clipped(detector, monkeypatch):
    """Images with 1.5 times the contrast have activations that are 1.5 times larger."""
    batch = pixels(24)
    measured = (128 + (batch.float() - 128) / 1.5).round().byte()
    detector.activation_steps = quantisation.measure_steps(detector, measured.split(3))
    exact = freeze(detector, torch.float32)(batch)

    def difference() -> float:
        return (freeze(detector, torch.int8)(batch) - exact).square().mean().sqrt().item()

    with_headroom = difference()
    monkeypatch.setattr(quantisation, "HEADROOM", 1.0)
    assert with_headroom < 0.7 * difference()


@needs_int8
def test_int8_is_near_float32(detector):
    batch = pixels(24)
    exact, quantised = freeze(detector, torch.float32)(batch), freeze(detector, torch.int8)(batch)
    assert quantised.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact.flatten(), quantised.flatten()]))[0, 1] > 0.95  # random weights
    assert 0 < (quantised - exact).abs().max() < 0.05  # the logits are near 0.6
    alone = torch.cat([freeze(detector, torch.int8)(image[None]) for image in batch])
    torch.testing.assert_close(quantised, alone, rtol=0, atol=0)


@needs_int8
def test_the_bundled_checkpoint_ranks_in_int8_as_in_float32():
    model = checkpoints.load().model
    crops = torch.cat([torch.cat(list(quarters(path))) for path in sorted(EXAMPLES.rglob("*.??g"))])
    exact, quantised = (freeze(model, dtype)(crops).flatten() for dtype in (torch.float32, torch.int8))
    assert len(crops) > 90 and torch.corrcoef(torch.stack([exact, quantised]))[0, 1] > 0.999


def quarters(path: Path) -> Iterator[torch.Tensor]:
    """The four quarters of 128 x 128 pixels."""
    whole = torch.from_numpy(decode(path.read_bytes()).pixels).permute(2, 0, 1)[None]
    for top, left in itertools.product((0, 128), repeat=2):
        yield whole[:, :, top : top + 128, left : left + 128]


def test_checkpoints_keep_steps(detector, tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, detector, Metadata(name="quantised"))
    loaded = checkpoints.load(path).model
    assert loaded.activation_steps.keys() == detector.activation_steps.keys()
    for name, step in detector.activation_steps.items():
        assert torch.equal(loaded.activation_steps[name], step)

    def damaged(change) -> None:
        state = safetensors.torch.load_file(path)
        change(state)
        safetensors.torch.save_file(state, tmp_path / "d.safetensors", metadata=header(path))
        with pytest.raises(CheckpointError, match="activation steps") as caught:
            checkpoints.load(tmp_path / "d.safetensors")
        assert len(str(caught.value).splitlines()) == 1

    name = "activation_steps.layer1.0.out"
    damaged(lambda state: state.pop(name))
    damaged(lambda state: state.update({name: state[name][:5].clone()}))
    damaged(lambda state: state.update({name: -state[name]}))
    damaged(lambda state: state.update({name: state[name] * float("inf")}))
    damaged(lambda state: state.update({"activation_steps.layer9.0.out": torch.ones(1)}))


def header(path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


@needs_int8
def test_calibrate_then_screen_in_int8(checkpoint, labelled, tmp_path, capsys):
    root = labelled({"photos/0_real": 24, "photos/1_fake": 4}, size=64)
    screen = ["screen", str(root), "--dtype", "int8", "--workers", "1", "-o"]
    assert cli.main([*screen, str(tmp_path / "a.parquet"), "--checkpoint", str(checkpoint)]) == 2
    assert "npr calibrate" in capsys.readouterr().err
    calibrated = str(tmp_path / "calibrated.safetensors")
    assert cli.main(["calibrate", str(checkpoint), str(root / "photos"), "--output", calibrated]) == 0
    for dtype in ("int8", "float32"):
        screen[3] = dtype
        assert cli.main([*screen, str(tmp_path / f"{dtype}.parquet"), "--checkpoint", calibrated]) == 0
    logits = [
        torch.tensor(pq.read_table(tmp_path / f"{dtype}.parquet").sort_by("source")["logit"].to_pylist())
        for dtype in ("int8", "float32")
    ]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.99 and not torch.equal(*logits)


def test_where_int8_is_not_supported(detector, monkeypatch):
    with pytest.raises(InputError, match="activation steps"):
        freeze(NPRDetector().eval(), torch.int8) if not REASON else quantisation.block_steps(NPRDetector())
    with pytest.raises(InputError, match="int8 is not supported with compile=True; use float32"):
        freeze(detector, torch.int8, compile=True)
    monkeypatch.setattr(cpu_bottleneck, "unsupported_reason", lambda *_: "this processor is too old")
    with pytest.raises(InputError, match=r"too old.*float32 or bfloat16"):
        freeze(detector, torch.int8)
    with pytest.raises(InputError, match="frank does not support int8"):
        freeze(detector_class("frank")(), torch.int8)
