"""The `cuda` backend on a GPU: parity over what it serves, streams, graphs, devices, the compiler, huge batches."""

from __future__ import annotations

import pytest
import torch

import npr_kernels
from npr_kernels import reference
from npr_kernels.backends import cuda as backend
from npr_kernels.testing import Case, assert_close, error, on
from tests.kernels.backends.stem_cases import CASES, convolution, exact, patches, windows


@pytest.fixture(autouse=True)
def device(cuda):
    """Every test here needs the GPU, and an extension with the CUDA kernels."""
    reason = npr_kernels.available_backends()["cuda"]
    assert reason is None, reason
    return cuda


def call(case: Case, device: torch.device):
    return on(device, *case.tensors()), case.convolution


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stem(case: Case, device):
    tensors = case.tensors()
    pooled = npr_kernels.npr_stem(*on(device, *tensors), backend="cuda", **case.options)
    eager = npr_kernels.npr_stem(*tensors, backend="eager", **case.options)
    truth = npr_kernels.npr_stem(*exact(*tensors), backend="eager", **case.options)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert_close(pooled.cpu(), eager, truth)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_trains_the_stem(case: Case, device):
    """The argmax, the gradients behind it and the moments, each against float64."""
    (x, weight, bias), options = call(case, device)
    pooled, argmax = backend.npr_stem_argmax(x, weight, bias, options)
    assert torch.equal(pooled, backend.npr_stem(x, weight, bias, options))
    grad = torch.randn(pooled.shape, device=device).to(weight.dtype)
    gradients = backend.npr_stem_grad_weight(grad, argmax, x, (3, 3), options)
    moments = backend.npr_moments(x, (3, 3), options)

    x, weight, bias, pooled, argmax, grad = (
        None if t is None else t.cpu() for t in (x, weight, bias, pooled, argmax, grad)
    )
    positive, chosen = argmax < 9, argmax.clamp(max=8).long()[..., None]
    assert torch.equal(positive, pooled != 0) and (argmax <= 9).all()
    if len(x) > 0:
        y = windows(reference.npr_conv2d(*exact(x, weight, bias), *options))
        lost = (y.amax(4).clamp_min(0) - y.gather(4, chosen)[..., 0]) * positive
        assert lost.max() <= 4 * torch.finfo(weight.dtype).eps * pooled.double().max()

    seen = patches(x, case.anchor, options.scale, torch.float64 if x.dtype == torch.uint8 else x.dtype)
    parameter = torch.zeros(weight.shape, dtype=torch.float64, requires_grad=True)
    y = torch.einsum("ok,nkl->nol", parameter.flatten(1), seen).unflatten(2, [n // 2 for n in x.shape[2:]])
    dz = grad.double() * positive
    truth = torch.zeros_like(parameter)
    if len(x) > 0:
        (truth,) = torch.autograd.grad(windows(y).gather(4, chosen)[..., 0], parameter, dz)
    for found, expected in zip(gradients, (truth, dz.sum((0, 2, 3))), strict=True):
        assert error(found.cpu(), expected) < 2e-6
    for found, expected in zip(moments, (seen.sum((0, 2)), torch.einsum("nal,nbl->ab", seen, seen)), strict=True):
        assert error(found.cpu(), expected) < (1e-14 if x.dtype == torch.uint8 else 2e-6)


WALKS = [
    Case(dtype=x, weight_dtype=d, out_channels=64, batch=b, height=h, width=w, layout=layout)
    for x, d in ((torch.uint8, torch.bfloat16), (torch.uint8, torch.float32), (torch.float32, torch.float32))
    for b, h, w, layout in ((128, 64, 64, "channels_last"), (2, 4096, 128, "contiguous"))
]


@pytest.mark.parametrize("case", WALKS, ids=str)
def test_long_walk(case: Case, device):
    """Every block goes through many rows with the same memory: of images in a row, and of a tall one."""
    test_stem(case, device)
    test_what_trains_the_stem(case, device)


LARGE = Case(batch=8, height=200, width=312, dtype=torch.uint8, weight_dtype=torch.bfloat16, out_channels=64)


def test_repeats_to_the_bit_on_any_stream(device):
    """Work that the stream still has to do when the kernels are launched must be done first."""
    (x, weight, bias), options = call(LARGE, device)

    def everything(image):
        pooled, argmax = backend.npr_stem_argmax(image, weight, bias, options)
        gradients = backend.npr_stem_grad_weight(pooled, argmax, image, (3, 3), options)
        return pooled, argmax, *gradients, *backend.npr_moments(image, (3, 3), options)

    expected = everything(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        results = everything(x.clone())
    stream.synchronize()
    assert all(map(torch.equal, expected, results))


def test_graph_capture(device):
    (x, weight, bias), options = call(LARGE, device)
    image = torch.zeros_like(x)
    backend.npr_stem(image, weight, bias, options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pooled, argmax = backend.npr_stem_argmax(image, weight, bias, options)
        products, _ = backend.npr_stem_grad_weight(pooled, argmax, image, (3, 3), options)
        first, _ = backend.npr_moments(image, (3, 3), options)
    image.copy_(x)
    graph.replay()
    expected, positions = backend.npr_stem_argmax(x, weight, bias, options)
    assert torch.equal(pooled, expected) and torch.equal(argmax, positions)
    assert torch.equal(products, backend.npr_stem_grad_weight(expected, positions, x, (3, 3), options)[0])
    assert torch.equal(first, backend.npr_moments(x, (3, 3), options)[0])


def test_second_device(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    (x, weight, bias), options = call(LARGE, torch.device("cuda", 1))
    with torch.cuda.device(0):
        pooled = backend.npr_stem(x, weight, bias, options)
        first, _ = backend.npr_moments(x, (3, 3), options)
    assert pooled.device == first.device == x.device
    (x, weight, bias), _ = call(LARGE, torch.device("cuda", 0))
    assert torch.equal(pooled.cpu(), backend.npr_stem(x, weight, bias, options).cpu())


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_compiled_whole(mode, device):
    torch._dynamo.reset()
    stem = npr_kernels.NPRStem(3, 64, backend="cuda", dtype=torch.bfloat16, device=device).eval()
    compiled = torch.compile(stem, fullgraph=True, mode=mode)
    with torch.no_grad():
        for layout in ("channels_last", "contiguous"):
            (x, *_), _ = call(Case(dtype=torch.uint8, height=64, width=96, layout=layout), device)
            assert torch.equal(compiled(x), stem(x))


def test_more_than_2_to_the_31_elements(device):
    """The last images of the batch lie beyond what 32 bits count, in the image and in the result."""
    batch, size = 44_000, 128  # 2.2e9 bytes in, 2.9e9 values out
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device, generator=generator)
    x = x.permute(0, 3, 1, 2)
    _, weight, bias = on(device, *Case(out_channels=64, dtype=torch.bfloat16).tensors())
    options = convolution(0, (0.01,))
    pooled, argmax = backend.npr_stem_argmax(x, weight, bias, options)
    assert pooled.numel() > 2**31 and x.numel() > 2**31
    expected, positions = backend.npr_stem_argmax(x[-3:], weight, bias, options)
    assert torch.equal(pooled[-3:], expected) and torch.equal(argmax[-3:], positions)
    grad = (
        torch.zeros((), dtype=torch.bfloat16, device=device)
        .expand(pooled.shape)
        .clone(memory_format=torch.channels_last)
    )
    del pooled
    grad[-3:] = expected
    products, _ = backend.npr_stem_grad_weight(grad, argmax, x, (3, 3), options)
    alone, _ = backend.npr_stem_grad_weight(expected, positions, x[-3:], (3, 3), options)
    assert error(products, alone) < 1e-6
