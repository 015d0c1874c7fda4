"""The mean over squares of pixels against torch's in float64, and its quantised form on every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from npr_kernels import extension
from npr_kernels.testing import assert_close
from npr_kernels.trunk import cpu_bottleneck
from npr_kernels.trunk.average_pool import AveragePool
from npr_kernels.trunk.cpu_bottleneck import CpuBottlenecks, QuantisedBottleneck, Steps
from tests.kernels.trunk.blocks import composed, layers

pytestmark = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))

INT8_REASON = cpu_bottleneck.unsupported_reason(torch.int8, 64)
needs_int8 = pytest.mark.skipif(bool(INT8_REASON), reason=str(INT8_REASON))
LEVELS = 0 if INT8_REASON else cpu_bottleneck.max_quantised_value()
REAL = torch.float32 if cpu_bottleneck.unsupported_reason(torch.bfloat16, 64) else torch.bfloat16  # can be quantised

# batch, channels, height, width, side
SHAPES = [(2, 64, 8, 6, 2), (1, 128, 7, 9, 2), (3, 64, 1, 1, 2), (1, 64, 5, 4, 3), (2, 64, 3, 5, 1), (0, 64, 4, 4, 2)]


def activations(batch: int, channels: int, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1)).relu().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, dtype):
    if reason := cpu_bottleneck.unsupported_reason(dtype, 64):
        pytest.skip(reason)
    *size, side = shape
    x = activations(*size, dtype=dtype)
    if not len(x):
        assert AveragePool(side)(x).shape == (0, 64, 2, 2)
        return
    truth, eager = (F.avg_pool2d(y, side, ceil_mode=True) for y in (x.double(), x))
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        found = AveragePool(side)(images)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        assert_close(found, eager, truth)


@needs_int8
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels(shape):
    *size, side = shape
    x, steps = activations(*size, dtype=REAL), torch.linspace(0.3, 3, size[1]) / LEVELS
    found = AveragePool(side, steps)(x)
    assert found.dtype == torch.uint8
    if not len(x):
        return
    exact = F.avg_pool2d(x.double(), side, ceil_mode=True) / steps.double().view(1, -1, 1, 1)
    assert (found.double() - exact.clamp(max=LEVELS)).abs().max() < 0.5 + 1e-3
    assert found.max() == LEVELS


@needs_int8
def test_a_quantised_block_reads_levels():
    """Near the same block in float64; nothing depends on the rest of the batch."""
    exact, x = layers(64, 64, 128, 1, torch.float32), activations(3, 64, 13, 10)
    pooled = F.avg_pool2d(x.double(), 2, ceil_mode=True)
    truth = composed(pooled, *[(p[0].double(), p[1].double()) for p in exact], 1).mean((2, 3), keepdim=True)
    first = F.relu(F.conv2d(pooled.float(), *exact[0]))
    second = F.relu(F.conv2d(first, *exact[1], 1, 1))
    of_pooled, *inner = ((y.amax((0, 2, 3)) / LEVELS).float() for y in (pooled, first, second))
    block = QuantisedBottleneck(*exact, 1, Steps(of_pooled, *inner, None))
    chain = torch.nn.Sequential(AveragePool(2, of_pooled), CpuBottlenecks(block, averaged=True))
    found = chain(x.to(REAL))
    assert found.shape == (3, 128, 1, 1) and found.dtype == torch.float32
    assert (found - truth).abs().max() < 0.02 * truth.abs().max()
    assert torch.equal(found[1:], chain(x[1:].to(REAL)))
    with pytest.raises(RuntimeError, match="must be averaged"):
        CpuBottlenecks(block)(AveragePool(2, of_pooled)(x.to(REAL)))


@pytest.mark.parametrize(
    ("x", "side", "factors", "message"),
    [
        (torch.zeros(1, 64, 4, 4), 0, None, "side must be 1 to 65536"),
        (torch.zeros(1, 64, 4, 4), 2**63 - 1, None, "side must be 1 to 65536"),
        (torch.zeros(1, 60, 4, 4), 2, None, "a multiple of"),
        (torch.zeros(64, 4, 4), 2, None, "the shape"),
        (torch.zeros(1, 64, 4, 4, dtype=torch.uint8), 2, None, "bottlenecks are float32"),
        (torch.zeros(1, 64, 4, 4, dtype=REAL), 2, torch.ones(63), "factors must be" if LEVELS else "can be quantised"),
    ],
)
def test_what_it_refuses(x, side, factors, message):
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    with pytest.raises(RuntimeError, match=message):
        torch.ops.npr_kernels.average_pool(x, side, factors)
