"""The fused residual bottleneck against float64, on every instruction set that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from npr_kernels import extension
from npr_kernels.testing import assert_close, error
from npr_kernels.trunk import cpu_bottleneck
from npr_kernels.trunk.cpu_bottleneck import CpuBottlenecks, FusedBottleneck
from tests.conftest import ROOT
from tests.kernels.trunk.blocks import SHAPES, composed, layers

pytestmark = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))


def check(shape: tuple, dtype: torch.dtype) -> None:
    batch, channels, width, out_channels, stride, *size = shape
    x = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = layers(channels, width, out_channels, stride, dtype)
    truth = composed(x.double(), *([None if p is None else tuple(t.double() for t in p) for p in exact]), stride)
    eager = composed(x, *exact, stride)
    fused = FusedBottleneck(*exact, stride, dtype)
    averaged = CpuBottlenecks(fused, averaged=True)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        out = fused(images)
        expected = out.double().mean((2, 3), keepdim=True).float()
        assert torch.allclose(averaged(images), expected, rtol=1e-5, atol=1e-7)
        assert out.is_contiguous(memory_format=torch.channels_last)
        if batch:
            assert_close(out, eager, truth)
        else:
            assert out.shape == eager.shape


@pytest.mark.parametrize("size", [(8, 8), (20, 14), (9, 5)])
def test_several_in_one_call_are_as_one_after_another(size):
    """Larger and smaller images in turn: the memory between them is used again."""
    blocks = [
        FusedBottleneck(*layers(64, 64, 256, 1, torch.float32), 1, torch.float32),
        FusedBottleneck(*layers(256, 64, 256, 1, torch.float32), 1, torch.float32),
        FusedBottleneck(*layers(256, 128, 512, 2, torch.float32), 2, torch.float32),
        FusedBottleneck(*layers(512, 128, 512, 1, torch.float32), 1, torch.float32),
    ]
    x = torch.randn(2, 64, *size)
    expected = x
    for block in blocks:
        expected = block(expected)
    assert torch.equal(CpuBottlenecks(*blocks)(x), expected)


def served() -> list[torch.dtype]:
    return [dtype for dtype in (torch.float32, torch.bfloat16) if cpu_bottleneck.unsupported_reason(dtype, 64) is None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, dtype, threads):
    if dtype not in served():
        pytest.skip(str(cpu_bottleneck.unsupported_reason(dtype, 64)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(shape, dtype)
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_into_memory_is_an_exception():
    """Not the end of the process: whoever scores goes on with fewer or smaller images."""
    resource = pytest.importorskip("resource", reason="limits the memory of a process, on Unix")
    code = f"""
import resource, torch
from npr_kernels.trunk.cpu_bottleneck import FusedBottleneck
from tests.kernels.trunk.blocks import layers
block = FusedBottleneck(*layers(64, 64, 64, 1, torch.float32), 1, torch.float32)
for threads in (2, 1):
    torch.set_num_threads(threads)
    block(torch.zeros(1, 64, 40, 4))
x = torch.zeros(1, 64, 40, 50_000).contiguous(memory_format=torch.channels_last)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + x.nbytes + 2**25, {resource.RLIM_INFINITY}))
for threads in (1, 2):
    torch.set_num_threads(threads)
    try:
        block(x)
    except (RuntimeError, MemoryError):
        print("goes on")
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs Linux, to know how much memory is used")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "goes on\n" * 2, run.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_where_it_belongs(dtype):
    if dtype not in served():
        pytest.skip(str(cpu_bottleneck.unsupported_reason(dtype, 64)))
    exact = layers(64, 64, 64, 1, dtype)
    x = torch.randn(2, 64, 12, 12).to(dtype)
    x[1, 5, 6, 6] = float("nan")
    found, expected = (
        FusedBottleneck(*exact, 1, dtype)(x),
        composed(x.double(), *(None if p is None else tuple(t.double() for t in p) for p in exact), 1),
    )
    assert error(found, expected) < 0.02 and found.isnan().any()


def test_opcheck():
    fused = FusedBottleneck(*layers(64, 64, 128, 2, torch.float32), 2, torch.float32)
    x = torch.randn(2, 64, 6, 6).contiguous(memory_format=torch.channels_last)
    weights, biases = [fused.weight1, fused.weight2, fused.weight3], [fused.bias1, fused.bias2, fused.bias3]
    for averaged in (False, True):
        arguments = x, weights, biases, [torch.empty(0)] * 4, [2], averaged
        torch.library.opcheck(torch.ops.npr_kernels.bottlenecks, arguments)
    torch.library.opcheck(torch.ops.npr_kernels.pack_weights, (torch.randn(64, 8), torch.float32))
    assert torch.equal(torch.compile(fused, fullgraph=True)(x), fused(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 64, 4, 4, dtype=torch.float64)}, "float32, or bfloat16"),
        ({"x": torch.zeros(1, 60, 4, 4).contiguous(memory_format=torch.channels_last)}, "do not fit"),
        ({"x": torch.zeros(1, 64, 4, 4)}, "dense in channels_last"),
        ({"x": torch.zeros(64, 4, 4)}, r"\(N, C, H, W\)"),
        ({"strides": [3]}, "1 or 2, got 3"),
        ({"factors": [torch.zeros(64)]}, "four factors for each"),
        ({"factors": [torch.zeros(64)] * 4}, "of a block of int8 weights"),
        ({"weights": []}, "three layers"),
        ({"strides": [2]}, "needs stride 1"),
    ],
)
def test_the_operator_refuses_what_would_read_foreign_memory(change, message):
    fused = FusedBottleneck(*layers(64, 64, 64, 1, torch.float32), 1, torch.float32)
    call = {
        "x": torch.zeros(1, 64, 4, 4).contiguous(memory_format=torch.channels_last),
        "weights": [fused.weight1, fused.weight2, fused.weight3],
        "biases": [fused.bias1, fused.bias2, fused.bias3],
        "factors": [torch.empty(0)] * 4,
        "strides": [1],
        "averaged": False,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.npr_kernels.bottlenecks(**(call | change))


def test_what_it_cannot_serve_is_said():
    assert "no kernel for torch.float16" in cpu_bottleneck.unsupported_reason(torch.float16, 64)
    with pytest.raises(ValueError, match="32 is no multiple"):
        FusedBottleneck(*layers(64, 32, 64, 1, torch.float32), 1, torch.float32)
