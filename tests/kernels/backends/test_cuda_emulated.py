"""The CUDA kernels' logic without a GPU: the same sources, on emulated threads (emulation.h), against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from npr_kernels import reference
from npr_kernels.backends.cuda import DTYPES
from npr_kernels.testing import Case, assert_close, error
from tests.kernels.backends.emulation import Emulation, pooled_shape
from tests.kernels.backends.stem_cases import CASES, convolution, exact, patches, windows

EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def call(case: Case):
    """(x, weight, bias), anchor and scale in normal form."""
    return case.tensors(), case.anchor, case.convolution.scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_any_size(dtype: torch.dtype, emulation: Emulation):
    """Each channel is as exact as it can be, however small or large its weights: they are rounded as float16."""
    (x, weight, bias), anchor, _ = call(Case(dtype=torch.uint8, weight_dtype=torch.float64, out_channels=16, width=38))
    powers = torch.logspace(-9, 9, 16, base=2 if dtype == torch.float16 else 10, dtype=torch.float64)
    weight, bias = ((t * powers.view(-1, *[1] * (t.dim() - 1))).to(dtype) for t in (weight, bias))
    pooled, _ = emulation.stem(x, weight, bias, anchor, (2 / 3 / 255,), False)
    truth = reference.npr_stem(*exact(x, weight, bias), *convolution(anchor, (2 / 3 / 255,)))
    for found, expected in zip(pooled.unbind(1), truth.unbind(1), strict=True):
        assert error(found, expected) < (2e-3 if dtype == torch.float16 else 4 * EPS[dtype])


@pytest.mark.parametrize("anchor", range(4))
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.bfloat16])
def test_weights_that_never_count(image_dtype: torch.dtype, anchor: int, emulation: Emulation):
    """Large ones, of taps that see an anchor, change nothing; one that is not a number makes its channel so."""
    case = Case(dtype=image_dtype, weight_dtype=torch.bfloat16, out_channels=16, width=128, anchor=anchor)
    (x, weight, bias), _, scale = call(case)
    own = (slice(None), slice(None), anchor // 2 + 1, anchor % 2 + 1)
    weight[own] = 0
    before = emulation.stem(x, weight, bias, anchor, scale, False)[0]
    weight[own] = 1e6
    assert torch.equal(emulation.stem(x, weight, bias, anchor, scale, False)[0], before)
    weight[3, 1, anchor // 2 + 1, anchor % 2 + 1] = float("nan")
    found = emulation.stem(x, weight, bias, anchor, scale, False)[0]
    assert found[:, 3].isnan().all() and torch.equal(found[:, 4:], before[:, 4:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_to_minus_zero_has_no_argmax(dtype: torch.dtype, emulation: Emulation):
    x = torch.full((2, 3, 24, 32), 7, dtype=torch.uint8)
    weight = torch.zeros(16, 3, 3, 3, dtype=dtype)
    for bias in (-1e-8, -0.0, -1e-30):
        biases = torch.full((16,), bias, dtype=torch.float32)
        pooled, positions = emulation.stem(x, weight, biases, 0, (1.0,), True)
        assert (pooled == 0).all() and (positions == 9).all()


@pytest.mark.parametrize("argmax", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_stem(case: Case, argmax: bool, emulation: Emulation):
    (x, weight, bias), anchor, scale = call(case)
    pooled, positions = emulation.stem(x, weight, bias, anchor, scale, argmax)
    truth = reference.npr_stem(*exact(x, weight, bias), *convolution(anchor, scale))
    assert_close(pooled, reference.npr_stem(x, weight, bias, *convolution(anchor, scale)), truth)
    if not argmax or x.shape[0] == 0:
        return
    assert ((positions == 9) == (pooled == 0)).all() and positions.max() <= 9
    y = windows(reference.npr_conv2d(*exact(x, weight, bias), *convolution(anchor, scale)))
    chosen = y.gather(4, positions.clamp(max=8).long()[..., None])[..., 0]
    lost = (y.amax(4).clamp_min(0) - chosen)[positions < 9]
    assert lost.numel() == 0 or lost.max() <= 4 * EPS[weight.dtype] * truth.abs().max()  # another of nearly equal ones


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equals_has_the_argmax(dtype: torch.dtype, emulation: Emulation):
    """Small integers, whose sums are exact in every type: what the positions must be is known to the last one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (2, 3, 38, 42), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-1, 2, (64, 3, 3, 3), generator=generator).to(dtype)
    bias = torch.randint(-3, 2, (64,), generator=generator).to(dtype)
    pooled, positions = emulation.stem(x, weight, bias, 0, (1.0,), True)
    y = windows(reference.npr_conv2d(*exact(x, weight, bias), *convolution(0, (1.0,))))
    values = y.amax(4)
    first = (y == values[..., None]).int().argmax(4)
    assert torch.equal(pooled.double(), values.clamp_min(0))
    assert torch.equal(positions.long(), torch.where(values > 0, first, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_pixels_spread_as_in_pytorch(value: float, dtype: torch.dtype, emulation: Emulation):
    (x, weight, bias), anchor, scale = call(Case(height=24, width=32, out_channels=16, dtype=dtype))
    x[1, 0, 9, 1] = value
    truth = reference.npr_stem(*exact(x, weight, bias), *convolution(anchor, scale))
    for argmax in (False, True):
        pooled, positions = emulation.stem(x, weight, bias, anchor, scale, argmax)
        assert error(pooled, truth) < 8 * EPS[dtype]
        assert positions is None or (positions[truth.isnan()] <= 8).all()


def test_a_non_finite_bias_is_its_channels(emulation: Emulation):
    (x, weight, bias), anchor, scale = call(Case(dtype=torch.uint8, weight_dtype=torch.bfloat16, out_channels=16))
    bias[:3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    pooled, _ = emulation.stem(x, weight, bias, anchor, scale, False)
    assert (pooled[:, 0] == float("inf")).all() and (pooled[:, 1] == 0).all() and pooled[:, 2].isnan().all()
    assert pooled[:, 3:].isfinite().all()


IMAGES = list(dict.fromkeys(replace(case, weight_dtype=None, out_channels=48, bias=True) for case in CASES))


@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_moments(case: Case, emulation: Emulation):
    """Exact for bytes; otherwise of the map as the image's dtype has it, which is what eager PyTorch would sum."""
    (x, _, _), anchor, scale = call(case)
    seen = patches(x, anchor, scale, torch.float64 if x.dtype == torch.uint8 else x.dtype)
    truths = seen.sum((0, 2)), torch.einsum("nal,nbl->ab", seen, seen)
    for found, truth in zip(emulation.moments(x, anchor, scale), truths, strict=True):
        assert error(found, truth) < (1e-14 if x.dtype == torch.uint8 else 1e-6)


@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_stem_grad_weight(case: Case, emulation: Emulation):
    (x, *_), anchor, scale = call(case)
    seen = patches(x, anchor, scale, torch.float64 if x.dtype == torch.uint8 else x.dtype)
    shape, generator = pooled_shape(x, case.out_channels), torch.Generator().manual_seed(1)
    height, width = (n // 2 for n in x.shape[-2:])
    y = torch.randn(x.shape[0], case.out_channels, height, width, generator=generator)
    chosen = torch.zeros(shape, dtype=torch.int64)
    if len(x) > 0:
        _, chosen = F.max_pool2d(y, 3, 2, 1, return_indices=True)
    rows = chosen // width - (2 * torch.arange(shape[2]) - 1).view(-1, 1)
    columns = chosen % width - (2 * torch.arange(shape[3]) - 1)
    positive = torch.rand(shape, generator=generator) < 0.8
    argmax = torch.where(positive, rows * 3 + columns, 9).to(torch.uint8)
    for layout, dtype in zip((torch.channels_last, torch.contiguous_format, torch.channels_last), DTYPES, strict=True):
        grad = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
        dz = torch.zeros(len(x), case.out_channels, height * width, dtype=torch.float64)
        dz.scatter_add_(2, chosen.flatten(2), (grad * positive).double().flatten(2))
        products, sums = emulation.stem_grad_weight(grad, argmax.contiguous(memory_format=layout), x, anchor, scale)
        assert error(products, torch.einsum("nol,nkl->ok", dz, seen)) < 1e-6
        assert error(sums, dz.sum((0, 2))) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_order_of_warps_or_the_number_of_blocks(dtype, emulation: Emulation):
    """Of the map to the bit; the reductions repeat to the bit for a number of blocks."""
    (x, weight, bias), anchor, scale = call(Case(dtype=torch.uint8, weight_dtype=dtype, out_channels=64, height=40))
    results = []
    for processors, seed in ((1, 1), (4, 2), (4, 3), (100, 4)):
        emulation.configure(processors, seed)
        pooled, positions = emulation.stem(x, weight, bias, anchor, scale, True)
        products, sums = emulation.stem_grad_weight(pooled, positions, x, anchor, scale)
        results.append((pooled, positions, products, sums, *emulation.moments(x, anchor, scale)))
    emulation.configure(3)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0]) and torch.equal(result[1], results[0][1])
    assert all(map(torch.equal, results[1], results[2]))
