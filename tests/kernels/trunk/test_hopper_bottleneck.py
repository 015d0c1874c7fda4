"""The CUDA kernel of Hopper's bottlenecks against float64: on emulated threads, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npr_kernels.testing import allowed, error
from npr_kernels.trunk import hopper_bottleneck
from tests.kernels.trunk.blocks import run_emulated

CPU = torch.device("cpu")
KINDS = sorted(hopper_bottleneck.KINDS)
SIZES = [(1, 8, 8), (2, 9, 17), (3, 8, 31), (1, 1, 1), (5, 5, 16)]  # batch, height and width of the result


def draw(
    inputs: int, outputs: int, kernel: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs, kernel, kernel), as bfloat16 has it, and bias."""
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator) * (inputs * kernel**2) ** -0.5
    return weight.bfloat16().to(device), torch.randn(outputs, generator=generator).to(device)


def matrix(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).flatten(0, 2)


def case(
    kind: tuple, size: tuple[int, int, int], device: torch.device = CPU
) -> tuple[tuple, list[Tensor], list[Tensor]]:
    """Arguments of run on ``device``, what it should give in float64, and what torch gives in bfloat16."""
    inside, stride, projected, kept, following = kind
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = projected or 4 * inside, 4 * inside
    conv2, conv3 = draw(inside, inside, 3, generator, device), draw(inside, outputs, 1, generator, device)
    shortcut = draw(inputs, outputs, 1, generator, device) if projected else None
    behind = draw(outputs, following, 1, generator, device) if following else None

    def image(channels: int, height: int, width: int) -> Tensor:
        x = torch.randn(batch, height, width, channels, generator=generator).relu()
        return x.bfloat16().to(device).permute(0, 3, 1, 2)

    # Of sizes that give the result's, an odd and an even one.
    middle = image(inside, height * stride - (stride - 1) * (height % 2), width * stride - (stride - 1))
    x = image(inputs, height, width)

    def composed(dtype: torch.dtype) -> list[Tensor]:
        def conv(image: Tensor, layer: tuple[Tensor, Tensor], stride: int = 1, padding: int = 0) -> Tensor:
            return F.conv2d(image, layer[0].to(dtype), layer[1].to(dtype), stride, padding)

        y = F.relu(conv(middle.to(dtype), conv2, stride, 1))
        y = F.relu(conv(y, conv3) + (x.to(dtype) if shortcut is None else conv(x.to(dtype), shortcut)))
        kept_y = y[:, :, ::kept, ::kept] if kept else y.double().sum((2, 3))
        return [kept_y, *([F.relu(conv(y, behind))] if behind else [])]

    weights = hopper_bottleneck.pack(
        matrix(conv2[0]),
        matrix(conv3[0]),
        None if shortcut is None else matrix(shortcut[0]),
        None if behind is None else matrix(behind[0]),
    )
    bias3 = conv3[1] + (0 if shortcut is None else shortcut[1])
    arguments = (
        *(image.permute(0, 2, 3, 1) for image in (middle, x)),
        *(weights, conv2[1], bias3, None if behind is None else behind[1], stride, kept),
    )
    return arguments, composed(torch.float64), composed(torch.bfloat16)


def check(results: tuple[Tensor, Tensor], truths: list[Tensor], eagers: list[Tensor], kept: int) -> None:
    first, second = results
    found = [first.permute(0, 3, 1, 2) if kept else first.double().sum(1)]
    if len(truths) == 2:
        found.append(second.permute(0, 3, 1, 2))
    for result, truth, eager in zip(found, truths, eagers, strict=True):
        assert error(result, truth) <= allowed(error(eager, truth), torch.bfloat16)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_emulated(kind, size, emulation):
    arguments, truths, eagers = case(kind, size)
    check(run_emulated(emulation, *arguments), truths, eagers, kind[3])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_results_do_not_depend_on_how_the_work_is_shared(kind, emulation):
    """Nor on the order of warps: more and fewer blocks, in other orders, and each image alone, to the bit."""
    arguments, *_ = case(kind, (3, 9, 17))
    try:
        expected = run_emulated(emulation, *arguments)
        for processors, seed in ((1, 1), (2, 2), (30, 3)):
            emulation.configure(processors, seed)
            for found, result in zip(run_emulated(emulation, *arguments), expected, strict=True):
                assert torch.equal(found, result)
        middle, x, *rest = arguments
        alone = run_emulated(emulation, middle[1:2].contiguous(), x[1:2].contiguous(), *rest)
        for found, result in zip(alone, expected, strict=True):
            assert torch.equal(found, result[1:2])
    finally:
        emulation.configure(3)


def test_nan_stays_with_its_pixels(emulation):
    (middle, x, *rest), *_ = case((64, 1, 0, 1, 64), (1, 16, 16))
    x[0, 3, 12, 5] = float("nan")
    y, next_middle = run_emulated(emulation, middle, x, *rest)
    assert y.isnan().sum() == 1 and y[0, 3, 12, 5].isnan()
    assert next_middle.isnan().flatten(0, 2).any(1).sum() == 1 and next_middle[0, 3, 12].isnan().all()


@pytest.mark.parametrize("size", [*SIZES, (0, 8, 8), (40, 61, 64)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_on_a_gpu(kind, size, cuda):
    if reason := hopper_bottleneck.unsupported_reason(torch.bfloat16, cuda):
        pytest.skip(reason)
    arguments, truths, eagers = case(kind, size, cuda)
    results = hopper_bottleneck.run(*arguments)
    if size[0]:
        check(results, truths, eagers, kind[3])
    for _ in range(3):  # a race would show
        assert all(torch.equal(*pair) for pair in zip(hopper_bottleneck.run(*arguments), results, strict=True))


def test_on_a_long_walk_on_a_gpu(cuda):
    """Each processor computes many tiles, as in use."""
    if reason := hopper_bottleneck.unsupported_reason(torch.bfloat16, cuda):
        pytest.skip(reason)
    for kind in KINDS:
        (middle, x, *rest), *_ = case(kind, (1, 64, 64), cuda)
        results = hopper_bottleneck.run(*(image.repeat(128, 1, 1, 1) for image in (middle, x)), *rest)
        for result in results:
            assert result.numel() == 0 or (
                torch.equal(result, result[:1].expand_as(result)) and result.isfinite().all()
            )
