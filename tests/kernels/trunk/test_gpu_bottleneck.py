"""The fused bottlenecks of a GPU against float64, under Triton's interpreter and, where there is one, on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness.inputs import random_detector
from npr_kernels.testing import allowed, error
from npr_kernels.trunk import gpu_bottleneck, hopper_bottleneck, selection
from npr_kernels.trunk.blocks import composed
from npr_kernels.trunk.gpu_bottleneck import GpuBottlenecks, dot
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.sizes import SIZES
from npr_model.inference.folded import folded_layers
from npr_model.inference.fused import block_shapes
from tests.kernels.backends.triton.interpreter import INTERPRETED, interpreted, run_under_interpreter
from tests.kernels.trunk.blocks import layers, run_emulated, trunk

triton = pytest.importorskip("triton", reason="Triton is not installed")
from npr_kernels.trunk import triton_kernels  # noqa: E402

# Channels in, width and stride of each block (four times as many channels out); batch, height, width.
STAGE = [(64, 64, 1), (256, 64, 1)]
CASES = [
    ([(64, 64, 1)], (2, 9, 15)),
    ([(256, 64, 1)], (1, 5, 7)),
    ([(64, 64, 2)], (1, 12, 10)),
    ([(64, 64, 1)], (1, 1, 1)),
    ([(256, 64, 2)], (1, 1, 5)),
    ([(512, 128, 1)], (1, 3, 4)),
    (STAGE, (0, 8, 8)),
    (STAGE, (1, 4, 33)),
    ([(256, 64, 1), (256, 128, 2), (512, 128, 1)], (2, 5, 7)),
    ([(64, 64, 1), (256, 64, 2), (256, 64, 2)], (1, 7, 6)),
]


SHAPES = {size: block_shapes(NPRDetector(size=size)) for size in SIZES}
PAPER = [(block.inputs, block.middle, block.stride) for block in SHAPES["paper"]]


def images(channels: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    batch, *size = shape
    x = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))
    return x.relu().to(dtype)  # as a stem gives them


def check(blocks: list, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    made, x = trunk(blocks, dtype), images(blocks[0][0], shape, dtype)
    for averaged, layout in ((False, torch.channels_last), (True, torch.contiguous_format)):
        truth = composed(x.double(), made, averaged)
        eager = composed(x, made, averaged)
        fused = GpuBottlenecks(made, dtype, averaged).to(device)
        found = fused(x.to(device).contiguous(memory_format=layout)).cpu()
        assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == eager.dtype
        assert found.shape == truth.shape
        if shape[0]:
            assert error(found, truth) <= allowed(error(eager, truth), dtype)


@pytest.mark.slow
@pytest.mark.xdist_group("interpreter")
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="the interpreter of older versions does not run on NumPy 2.4",
)
def test_under_the_interpreter(emulation_library):
    run_under_interpreter(__file__, NPR_EMULATION_LIBRARY=str(emulation_library))


@interpreted
@pytest.mark.parametrize(
    ("blocks", "shape", "dtype"),
    [*((*case, torch.bfloat16) for case in CASES), (*CASES[0], torch.float16), (*CASES[-1], torch.float16)],
    ids=str,
)
def test_interpreted(blocks, shape, dtype):
    check(blocks, shape, dtype, torch.device("cpu"))


def check_whatever_the_batch(device: torch.device, size: tuple[int, int]) -> None:
    """To the bit, the result of an image is its own."""
    made = trunk([(64, 64, 1), (256, 64, 2)], torch.bfloat16)
    x = images(64, (3, *size), torch.bfloat16).to(device)
    for averaged in (False, True):
        fused = GpuBottlenecks(made, torch.bfloat16, averaged).to(device)
        together = fused(x)
        assert all(torch.equal(fused(x[i : i + 1]), together[i : i + 1]) for i in range(3))
    features = together.flatten(1)
    found = dot(features, features[0])
    assert torch.allclose(found.double(), features.double() @ features[0].double(), rtol=1e-6)
    assert torch.equal(dot(features[2:], features[0]), found[2:])


@interpreted
def test_the_detectors_blocks():
    """Batch norms folded, all seven blocks, from the stem's result to the mean."""
    detector = random_detector()
    blocks = [block for stage in (detector.layer1, detector.layer2) for block in stage]
    fused = GpuBottlenecks([(folded_layers(b), b.conv2.stride[0]) for b in blocks], torch.bfloat16, averaged=True)
    x = images(64, (2, 9, 6), torch.bfloat16)
    with torch.no_grad():
        truth = detector.double().layer2(detector.layer1(x.double())).mean((2, 3), keepdim=True)
        eager = detector.bfloat16().layer2(detector.layer1(x)).float().mean((2, 3), keepdim=True)
    assert error(fused(x), truth) <= allowed(error(eager, truth), torch.bfloat16)


@interpreted
def test_results_are_an_images_own():
    check_whatever_the_batch(torch.device("cpu"), (5, 6))


def test_results_are_an_images_own_on_a_gpu(cuda):
    check_whatever_the_batch(cuda, (40, 37))


@interpreted
def test_hopper_serves_the_detectors_blocks(emulation, monkeypatch):
    """All seven go to the CUDA kernel, which is emulated: first convolution and mean are Triton's."""
    calls = []

    def emulated(*arguments):
        calls.append(arguments)
        return run_emulated(emulation, *arguments)

    monkeypatch.setattr(hopper_bottleneck, "run", emulated)
    made, x = trunk(PAPER, torch.bfloat16), images(64, (2, 19, 9), torch.bfloat16)
    fused = GpuBottlenecks(made, torch.bfloat16, averaged=True, hopper=True)
    truth, eager = composed(x.double(), made, averaged=True), composed(x, made, averaged=True)
    assert error(fused(x), truth) <= allowed(error(eager, truth), torch.bfloat16)
    assert len(calls) == 7


def test_hopper_serves_no_block_of_the_fast_detector():
    """Its kernels have results that are four times as wide as the block, which none of these is but the last ones."""
    made = []
    for inputs, middle, outputs, stride in SHAPES["fast"]:
        made.append((layers(inputs, middle, outputs, stride, torch.bfloat16), stride))
    fused = GpuBottlenecks(made, torch.bfloat16, averaged=True, hopper=True)
    assert [block.packed is None or block.outputs == 4 * block.middle for block in fused.blocks] == [True] * 5
    assert fused.blocks[0].packed is None


@interpreted
def test_the_kernels_prove_themselves(monkeypatch, caplog):
    """A kernel made wrong on purpose is found out, and so is one that fails; each is logged once."""
    device = torch.device("cpu")
    for blocks in SHAPES.values():
        kinds = tuple(dict.fromkeys(blocks))  # each shape once, as the interpreter is slow
        assert selection.kernels_for(torch.bfloat16, device, kinds) == "triton"
    assert not caplog.records
    one = SHAPES["paper"][:1]  # enough to tell a wrong mean
    inner = triton_kernels.mean_kernel
    for wrong, message in (
        (lambda sums, out, tiles, *rest, **options: inner[len(out), 4](sums, out, tiles - 1, *rest), "differs by"),
        (lambda *_, **__: 1 / 0, "ZeroDivisionError: division by zero"),
    ):
        selection._sound.cache_clear()
        monkeypatch.setattr(triton_kernels, "mean_kernel", {(2, 4): wrong})
        caplog.clear()
        assert selection.kernels_for(torch.bfloat16, device, one) is None
        assert selection.kernels_for(torch.bfloat16, device, one) is None
        (found,) = caplog.messages
        assert message in found
    selection._sound.cache_clear()


def test_what_serves_a_gpu(monkeypatch):
    """Hopper's kernel if it is sound, else Triton's, else none."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(gpu_bottleneck, "unsupported_reason", lambda *_: None)
    monkeypatch.setattr(hopper_bottleneck, "unsupported_reason", lambda *_: None)
    for sound, expected in (("hopper", "triton"), "hopper"), (("triton",), "triton"), ((), None):
        monkeypatch.setattr(selection, "_sound", lambda *_, hopper, sound=sound: ("triton", "hopper")[hopper] in sound)
        assert selection.kernels_for(dtype, device, SHAPES["paper"]) == expected
    monkeypatch.setattr(selection, "_sound", lambda *_, hopper: True)
    for choice, expected in ("hopper", "hopper"), ("triton", "triton"), ("none", None):
        monkeypatch.setenv("NPR_KERNELS_TRUNK", choice)
        assert selection.kernels_for(dtype, device, SHAPES["paper"]) == expected
    monkeypatch.setenv("NPR_KERNELS_TRUNK", "ampere")
    with pytest.raises(ValueError, match="NPR_KERNELS_TRUNK must be hopper, triton or none, got 'ampere'"):
        selection.kernels_for(dtype, device, SHAPES["paper"])
    monkeypatch.delenv("NPR_KERNELS_TRUNK")
    monkeypatch.setattr(hopper_bottleneck, "unsupported_reason", lambda *_: "no")
    assert selection.kernels_for(dtype, device, SHAPES["paper"]) == "triton"
    monkeypatch.setattr(gpu_bottleneck, "unsupported_reason", lambda *_: "no")
    assert selection.kernels_for(dtype, device, SHAPES["paper"]) is None


@pytest.mark.parametrize("hopper", [False, True])
def test_the_detectors_blocks_on_a_gpu(cuda, hopper):
    """A batch that gives every processor several tiles."""
    if hopper and (reason := hopper_bottleneck.unsupported_reason(torch.bfloat16, cuda)):
        pytest.skip(reason)
    made, x = trunk(PAPER, torch.bfloat16), images(64, (50, 60, 71), torch.bfloat16).to(cuda)
    made = [([None if p is None else tuple(t.to(cuda) for t in p) for p in layers], stride) for layers, stride in made]
    fused = GpuBottlenecks(made, torch.bfloat16, averaged=True, hopper=hopper).to(cuda)
    truth, eager = composed(x[:4].double(), made, averaged=True), composed(x[:4], made, averaged=True)
    found = fused(x)
    assert error(found[:4], truth) <= allowed(error(eager, truth), torch.bfloat16)
    assert all(torch.equal(fused(x), found) for _ in range(5))  # a race would show
    assert torch.equal(fused(x[17:30]), found[17:30])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("blocks", "shape"), [*CASES, ([*STAGE, (256, 128, 2)], (3, 56, 61))], ids=str)
def test_on_a_gpu(cuda, blocks, shape, dtype):
    check(blocks, shape, dtype, cuda)
