"""Quantised residual bottlenecks against the same whole numbers in float64."""

from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npr_kernels.testing import error
from npr_kernels.trunk import cpu_bottleneck
from npr_kernels.trunk.cpu_bottleneck import (
    INPUTS_TO_FOUR,
    WEIGHTS_TO_FOUR,
    CpuBottlenecks,
    FusedBottleneck,
    QuantisedBottleneck,
    Steps,
    _winograd_integers,
)
from tests.kernels.trunk.blocks import SHAPES, composed, layers

REASON = cpu_bottleneck.unsupported_reason(torch.int8, 64)
pytestmark = pytest.mark.skipif(bool(REASON), reason=str(REASON))
LEVELS = 0 if REASON else cpu_bottleneck.max_quantised_value()
# Type of the blocks around them.
REAL = torch.float32 if cpu_bottleneck.unsupported_reason(torch.bfloat16, 64) else torch.bfloat16


def as_bytes(channels: int) -> FusedBottleneck:
    """Levels in REAL to the same quantised."""
    nothing = [(torch.zeros(64, channels, 1, 1), torch.zeros(64)), (torch.zeros(64, 64, 3, 3), torch.zeros(64))]
    nothing.append((torch.zeros(channels, 64, 1, 1), torch.zeros(channels)))
    shortcut = torch.eye(channels)[..., None, None], torch.zeros(channels)
    return FusedBottleneck(*nothing, shortcut, 1, REAL, torch.ones(channels))


def bytes_like(*shape: int) -> Tensor:
    return torch.randint(0, LEVELS + 1, shape, generator=torch.Generator().manual_seed(1)).double()


def steps_of(x: Tensor, exact: list, stride: int, last: bool) -> Steps:
    """Of a block on ``x`` in steps that differ from channel to channel."""
    conv1, conv2, conv3, shortcut = exact
    first = F.relu(F.conv2d(x, *conv1))
    second = F.relu(F.conv2d(first, *conv2, stride, 1))
    out = F.relu(F.conv2d(second, *conv3) + (x if shortcut is None else F.conv2d(x, *shortcut, stride)))

    def step(y: Tensor) -> Tensor:
        return (y.amax((0, 2, 3)) / (0.8 * LEVELS)).clamp(min=1e-3).float()

    return Steps(torch.full((x.shape[1],), 1 / LEVELS), step(first) * 0.7, step(second), None if last else step(out))


def rounded_product(x: Tensor, weight: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    """The sums of ``x`` and whole-number weights, and the factors that belong to them."""
    factor = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    whole = (weight / factor).round()
    sums = F.conv2d(x, whole, None, stride, weight.shape[2] // 2)
    return sums, factor.view(1, -1, 1, 1)


# Four results of six products, F(4, 3)'s, as WEIGHTS_TO_FOUR and INPUTS_TO_FOUR leave them, over 4.
PRODUCTS_TO_FOUR = (
    (1, 1, 1, 2 / 3, 2 / 3, 0), (0, 1, -1, 4 / 3, -4 / 3, 0), (0, 1, 1, 8 / 3, 8 / 3, 0), (0, 1, -1, 16 / 3, -16 / 3, 4)
)  # fmt: skip


def winograd_product(x: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution of levels by F(4x4, 3x3), with the kernel's weights, whole numbers once transformed."""
    to_products, to_results = (torch.tensor(t, dtype=torch.float64) for t in (INPUTS_TO_FOUR, PRODUCTS_TO_FOUR))
    matrices, factor = _winograd_integers(weight)
    assert all(torch.equal(m, m.round()) and m.abs().max() < 2**15 for m in matrices)
    height, width = x.shape[2:]
    tiles = F.pad(x, (1, 1 - width % -4, 1, 1 - height % -4)).unfold(2, 6, 4).unfold(3, 6, 4)
    tiles = torch.einsum("iy,nchwyx,jx->nchwij", to_products, tiles, to_products)
    products = torch.einsum("ijoc,nchwij->nohwij", torch.stack(matrices).unflatten(0, (6, 6)), tiles)
    assert products.abs().max() < 2**31
    results = torch.einsum("yi,nohwij,xj->nohywx", to_results, products, to_results)
    results = results.flatten(4, 5).flatten(2, 3)[:, :, :height, :width] * factor.view(1, -1, 1, 1)
    limit = 1e-3 * LEVELS / 127  # sums of levels twice as large leave the weights a bit less
    assert error(results, F.conv2d(x, weight, padding=1)) < limit
    return results


def by_the_rules(x: Tensor, exact: list, stride: int, steps: Steps) -> tuple[Tensor, Tensor]:
    """What QuantisedBottleneck promises, in float64; ``x`` and the result count steps.

    The second result, (N, 1, H, W), is true where it depends on a value so near the edge between two steps that the
    kernels, which multiply the whole-number sums in float32, may round it to either side.
    """
    conv1, conv2, conv3, shortcut = [None if p is None else (p[0].double(), p[1].double()) for p in exact]
    out = torch.ones(conv3[0].shape[0]) if steps.out is None else steps.out

    def scaled(weight: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        return weight * columns.double().view(1, -1, 1, 1) / rows.double().view(-1, 1, 1, 1)

    def bias(values: Tensor, rows: Tensor) -> Tensor:
        return (values / rows.double()).view(1, -1, 1, 1)

    sums, factor = rounded_product(x, scaled(conv1[0], steps.x, steps.first))
    y = F.relu(sums * factor + bias(conv1[1], steps.first))
    on_an_edge = F.max_pool2d(near_an_edge(y).double(), 3, stride, 1).bool()
    y = y.round().clamp(max=LEVELS)
    weight = scaled(conv2[0], steps.first, steps.second)
    if stride == 1:
        sums, factor = winograd_product(y, weight), 1
    else:
        sums, factor = rounded_product(y, weight, stride)
    y = F.relu(sums * factor + bias(conv2[1], steps.second))
    on_an_edge |= near_an_edge(y)
    y = y.round().clamp(max=LEVELS)
    weight = scaled(conv3[0], steps.second, out)
    if shortcut is None:
        sums, factor = rounded_product(y, weight)
        total = sums * factor + bias(conv3[1], out) + x * (steps.x.double() / out.double()).view(1, -1, 1, 1)
    else:
        weight = torch.cat([weight, scaled(shortcut[0], steps.x, out)], 1)
        sums, factor = rounded_product(torch.cat([y, x[:, :, ::stride, ::stride]], 1), weight)
        total = sums * factor + bias(conv3[1] + shortcut[1], out)
    total = F.relu(total)
    return total if steps.out is None else total.round().clamp(max=LEVELS), on_an_edge


def near_an_edge(y: Tensor) -> Tensor:
    return ((y - y.floor() - 0.5).abs() < 5e-5).any(1, keepdim=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_whole_numbers(shape):
    """The same to the bit with one thread and with two."""
    batch, channels, width, out_channels, stride, *size = shape
    exact = layers(channels, width, out_channels, stride, torch.float32)
    x = bytes_like(max(batch, 1), channels, *size)
    steps = steps_of((x / LEVELS).float(), exact, stride, last=True)
    quantised = CpuBottlenecks(as_bytes(channels), QuantisedBottleneck(*exact, stride, steps))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = quantised(x[:batch].to(REAL))
        torch.set_num_threads(2)
        assert torch.equal(quantised(x[:batch].to(REAL)), found)
    finally:
        torch.set_num_threads(before)
    truth, on_an_edge = (t[:batch] for t in by_the_rules(x, exact, stride, steps))
    assert found.shape == truth.shape and found.dtype == REAL
    if batch:
        assert error(found, truth) < 0.02
        off = (found.double() - truth).abs() > truth.abs() / 200 + 1e-3  # more than REAL rounds
        assert not (off & ~on_an_edge).any() and on_an_edge.double().mean() < 0.2


@pytest.mark.parametrize("channels", [64, 128])
def test_the_largest_sums_fit_into_32_bits(channels):
    """The weights and levels with which a place of the transformed tile has the largest sum there can be."""
    transform, of_weights = (torch.tensor(t, dtype=torch.float64) for t in (INPUTS_TO_FOUR, WEIGHTS_TO_FOUR))
    unit = torch.eye(channels, dtype=torch.float64)[..., None, None], torch.zeros(channels)
    one = torch.ones(channels)
    for i, j, sign in itertools.product(range(6), range(6), (1, -1)):
        weight = of_weights[i].outer(of_weights[j])
        weight = (weight * 200 / (channels * LEVELS * 9 * weight.abs().max())).repeat(channels, channels, 1, 1)
        x = torch.zeros(1, channels, 12, 12, dtype=torch.float64)
        x[:, :, 3:9, 3:9] = LEVELS * (sign * transform[i].outer(transform[j]) > 0)  # what a whole tile reads
        block = QuantisedBottleneck(unit, (weight, 100 * one), unit, None, 1, Steps(one, one, one, None))
        found = CpuBottlenecks(as_bytes(channels), block)(x.to(REAL))
        expected = x + (F.conv2d(x, weight, padding=1) + 100).clamp(min=0).round().clamp(max=LEVELS)
        assert (found.double() - expected).abs().max() < 6  # 3 steps, and bfloat16's; one that wraps is 100 off


@pytest.mark.parametrize("sign", [1, -1])
def test_products_of_two_inputs_fit_into_what_the_processor_has(sign):
    """Neighbours with the largest weights, on the largest levels."""
    mixed = (torch.full((64, 64, 1, 1), sign / 64), torch.full((64,), 2.0 * LEVELS))
    unit, zero, one = torch.eye(64)[..., None, None], torch.zeros(64), torch.ones(64)
    through = torch.zeros(64, 64, 3, 3)
    through[:, :, 1, 1] = torch.eye(64)
    block = QuantisedBottleneck(mixed, (through, zero), (unit, zero), None, 1, Steps(one, 4 * one, 4 * one, None))
    x = torch.full((1, 64, 4, 4), float(LEVELS))
    found = CpuBottlenecks(as_bytes(64), block)(x.to(REAL))
    assert (found.double() - (2 + sign + 1) * LEVELS).abs().max() < 4  # steps of four, and bfloat16's


def test_sums_that_could_leave_32_bits_are_refused():
    wide = 2**31 // (127 * LEVELS) // 64 * 64 + 64
    exact = [(torch.zeros(64, wide, 1, 1), torch.zeros(64)), (torch.zeros(64, 64, 3, 3), torch.zeros(64))]
    exact.append((torch.zeros(64, 64, 1, 1), torch.zeros(64)))
    steps = Steps(torch.ones(wide), torch.ones(64), torch.ones(64), None)
    with pytest.raises(ValueError, match=f"{wide} inputs"):
        QuantisedBottleneck(*exact, (torch.zeros(64, wide, 1, 1), torch.zeros(64)), 1, steps)


def test_several_in_one_call():
    """Bytes handed from block to block, an own step for each channel; near the network in float32."""
    plan = [(64, 64, 256, 1), (256, 64, 256, 1), (256, 128, 512, 2), (512, 128, 512, 1)]
    exact = [layers(*block, torch.float32) for block in plan]
    exact[1:] = [[None if p is None else (p[0], p[1] / 4) for p in block] for block in exact[1:]]
    x = torch.rand(2, 64, 20, 14).to(REAL)
    floats = [x.float()]
    for block, (*_, stride) in zip(exact, plan, strict=True):
        floats.append(composed(floats[-1], *block, stride))
    outs = [(y.amax((0, 2, 3)) / LEVELS).clamp(min=1e-3) for y in floats[1:-1]] + [None]
    made = [FusedBottleneck(*exact[0], 1, REAL, outs[0])]
    for i, (before, out) in enumerate(pairwise(outs), 1):
        inner = steps_of(floats[i], exact[i], plan[i][3], last=out is None)
        made.append(QuantisedBottleneck(*exact[i], plan[i][3], Steps(before, inner.first / 0.7, inner.second, out)))
    found = CpuBottlenecks(*made)(x)
    assert error(found, floats[-1]) < 0.045  # three blocks in steps: 0.024 to 0.036 over 40 seeds
    assert torch.corrcoef(torch.stack([found.double().flatten(), floats[-1].double().flatten()]))[0, 1] > 0.999
    assert torch.equal(found[1:], CpuBottlenecks(*made)(x[1:]))  # nothing depends on the rest of the batch
    means = found.double().mean((2, 3), keepdim=True).float()
    assert torch.allclose(CpuBottlenecks(*made, averaged=True)(x), means, rtol=1e-5)


def test_what_is_too_large_becomes_the_largest_byte():
    exact = [(p[0] * 0, p[1] * 0) for p in layers(64, 64, 64, 1, torch.float32)[:3]]
    steps = Steps(torch.ones(64), torch.ones(64), torch.ones(64), torch.full((64,), 0.25))
    last = Steps(torch.full((64,), 0.25), torch.ones(64), torch.ones(64), None)
    blocks = as_bytes(64), QuantisedBottleneck(*exact, None, 1, steps), QuantisedBottleneck(*exact, None, 1, last)
    x = torch.arange(256.0).repeat(64, 1).view(1, 64, 16, 16)
    x[:, :, 3, :2] = torch.tensor([1e12, -1e12])  # beyond 32 bits, too
    expected = x.clamp(min=0, max=LEVELS * 0.25).to(REAL)
    assert torch.equal(CpuBottlenecks(*blocks)(x.to(REAL)), expected)


def test_wrong_chains_are_refused():
    exact = layers(64, 64, 64, 1, torch.float32)
    steps = Steps(*(torch.ones(64) for _ in range(4)))
    quantised, plain = QuantisedBottleneck(*exact, 1, steps), FusedBottleneck(*exact, 1, REAL)
    x = torch.zeros(1, 64, 4, 4).to(REAL)
    for blocks, message in [
        ((quantised,), "first block's dtype"),
        ((plain, quantised), "needs a shortcut with a convolution"),
        ((as_bytes(64), quantised, plain), "can be quantised"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            CpuBottlenecks(*blocks)(x)
    with pytest.raises(ValueError, match="out_steps need a shortcut"):
        FusedBottleneck(*exact, 1, REAL, torch.ones(64))
    with pytest.raises(RuntimeError, match="four factors"):
        weights = [
            weight for block in (as_bytes(64), quantised) for weight in (block.weight1, block.weight2, block.weight3)
        ]
        torch.ops.npr_kernels.bottlenecks(
            x.contiguous(memory_format=torch.channels_last), weights, [torch.zeros(64)] * 6, [], [1, 1], False
        )
