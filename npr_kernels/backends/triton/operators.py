"""The operators of the `triton` backend as torch.library operators: schemas, results without data (fakes), launches.

Being operators of torch's dispatcher they appear as one node in graphs of torch.compile and torch.export. Each is
defined once by :func:`_operator` with two functions: one makes the results, which is all that a fake needs, and one
fills them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from npr_kernels import arguments
from npr_kernels.backends import devices
from npr_kernels.backends.triton import patches
from npr_kernels.backends.triton.convolution import npr_conv2d_kernel
from npr_kernels.backends.triton.grad_map import npr_conv2d_grad_map_kernel
from npr_kernels.backends.triton.grad_weight import npr_conv2d_grad_weight_kernel
from npr_kernels.backends.triton.launch import INTERPRETED, Tile, launch
from npr_kernels.backends.triton.moments import npr_moments_kernel
from npr_kernels.backends.triton.npr_map import npr_backward_kernel, npr_kernel
from npr_kernels.backends.triton.partial_sums import partial_sums_kernel
from npr_kernels.backends.triton.patches import Geometry
from npr_kernels.backends.triton.stem import npr_stem_kernel
from npr_kernels.backends.triton.stem_grad_weight import npr_stem_grad_weight_kernel

# One thread a position (fewer share their loads, more repeat them), and as many channels as registers hold. Warp
# instructions on sm_90 for one pooled position of 64 channels, uint8 to bfloat16: 96 for the stem (143 in tiles of 32
# channels), 224 with the argmax (193 in tiles of 64, which spill 360 bytes).
CONVOLUTION_TILE, STEM_TILE, ARGMAX_TILE = Tile(128, 64, 4), Tile(128, 64, 4), Tile(128, 32, 4)
PLAIN_CONVOLUTION_TILE, PLAIN_STEM_TILE = Tile(64, 32, 2), Tile(128, 16, 4)  # without tensor cores
WARPS = 2112  # of a sum over the batch, whatever the device: 16 on each multiprocessor of an H100 or H200
_LIBRARY = torch.library.Library("npr_kernels_triton", "DEF")
implementations: dict[str, Callable] = {}  # by the operator's name; torch's dispatcher calls them
_CONVOLUTION = "int[] stride, int[] padding, int grid_size, int anchor, float[] scale"


def _operator(schema: str, results: Callable, fill: Callable) -> None:
    """Define an operator that returns ``results(*args)`` after ``fill(results, *args)``."""
    name = schema.partition("(")[0]

    def implementation(*args):
        made = results(*args)
        fill(made, *args)
        return made

    implementations[name] = implementation
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CPU" if INTERPRETED else "CUDA")
    torch.library.register_fake(f"npr_kernels_triton::{name}", results, lib=_LIBRARY)


# ---- what kernels are compiled for


def _geometry(x: Tensor, kernel, stride, padding, grid_size: int, anchor: int, scale) -> Geometry:
    channels = x.shape[1]
    paper = (channels, *kernel, *stride, *padding, grid_size, anchor) == (3, 3, 3, 2, 2, 1, 1, 2, 0)
    largest = max(map(abs, scale)) or 1.0
    factors = tuple(factor / largest for factor in scale)
    if len(set(factors)) == 1:
        factors = factors[:1]
    span = sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    layout = _layout(x, grid_size) if paper else patches.SCATTERED
    wide = span >= 2**31
    return Geometry(channels, *kernel, *stride, *padding, grid_size, anchor, paper, layout, wide, largest, factors)


def _layout(x: Tensor, grid_size: int) -> int:
    """Whether four neighbouring pixels can be read as aligned vectors of four elements, and how they lie."""
    stride_n, stride_c, stride_h, stride_w = x.stride()
    if x.data_ptr() % 16 or (x.shape[3] - x.shape[3] % grid_size) % 4 or stride_n % 4 or stride_h % 4:
        return patches.SCATTERED
    if (stride_c, stride_w) == (1, 3):
        return patches.PACKED
    return patches.PLANAR if stride_w == 1 and stride_c % 4 == 0 else patches.SCATTERED


def _arithmetic(x: Tensor, other: torch.dtype, anchor: int) -> dict:
    """The type T of sums, and those of the factors: of patches, and of what they are multiplied with (of ``other``).

    Float32 factors are split for the tensor cores, and products are as exact as in float32: torch's setting for TF32
    makes no difference.
    """
    if torch.float64 in (x.dtype, other):
        return {"T": tl.float64, "PATCH": tl.float64, "FACTOR": tl.float64, "SPLIT": False}
    if not _has_tensor_cores(x.device):
        return {"T": tl.float32, "PATCH": tl.float32, "FACTOR": tl.float32, "SPLIT": False}
    patch = factor = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(other, tl.float32)
    if factor == tl.float32 and x.dtype == torch.uint8 and anchor != patches.MEAN:
        patch = tl.bfloat16  # differences are integers of at most 8 bits
    return {"T": tl.float32, "PATCH": patch, "FACTOR": factor, "SPLIT": True}


def _has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton uses those of ``device``; without them large tiles would spill their products."""
    return device.type != "cuda" or devices.capability(device) >= (8, 0)


def _accumulated(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _trimmed(x: Tensor, grid_size: int) -> tuple[int, int]:
    return x.shape[2] - x.shape[2] % grid_size, x.shape[3] - x.shape[3] % grid_size


def _blocks(tile: Tile, columns: int) -> dict:
    """BLOCK_Y x BLOCK_X = positions, as wide as pays: up to 32 columns (one per thread of a warp)."""
    across = min(32, tile.positions, triton.next_power_of_2(max(columns, 1)))
    return {"BLOCK_Y": tile.positions // across, "BLOCK_X": across}


def _tile_count(images: int, rows: int, columns: int, blocks: dict) -> int:
    return images * triton.cdiv(rows, blocks["BLOCK_Y"]) * triton.cdiv(columns, blocks["BLOCK_X"])


def _output_block(out_channels: int, largest: int) -> int:
    return min(largest, max(16, triton.next_power_of_2(out_channels)))


def _element_block(geometry: Geometry, arithmetic: dict) -> int:
    return 16 if _plain(arithmetic) and not geometry.paper else 32


def _plain(arithmetic: dict) -> bool:
    """Products not on tensor cores, in float32 or float64: with more registers for each."""
    return arithmetic["PATCH"] in (tl.float32, tl.float64) and not arithmetic["SPLIT"]


def _gradient_strides(grad: Tensor) -> tuple[list[int], int]:
    """The strides of ``grad`` and their unit: 16 elements where channels are innermost and begin at multiples of it."""
    strides = grad.stride()
    unit = 16 if strides[1] == 1 and not any(strides[dimension] % 16 for dimension in (0, 2, 3)) else 1
    return [stride // unit for stride in strides], unit


# ---- npr


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(x: Tensor, shape: tuple, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=_memory_format(channels_last))


def _npr_results(x, grid_size, anchor, channels_last):
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return _empty(x, (*x.shape[:2], *_trimmed(x, grid_size)), dtype, channels_last)


def _npr(out, x, grid_size, anchor, channels_last):
    if out.numel() == 0:
        return
    images, channels, height, width = out.shape
    inner = channels if channels_last else 1
    block = min(1024, triton.next_power_of_2(width * inner))
    steps = [x.stride(dimension) for dimension in (0, 1, 2) if dimension != 1 or inner == 1]
    grid = (images * (channels // inner) * height * triton.cdiv(width * inner, block),)
    launch(
        npr_kernel, x.device, 4, grid, x, out, *x.stride(), channels, height, width,
        GRID=grid_size, ANCHOR=anchor, INNER=inner, T=tl.float64 if x.dtype == torch.float64 else tl.float32,
        DENSE=x.stride(3) == inner and (inner == 1 or x.stride(1) == 1),
        ALIGNED=not any(step % 16 for step in (width * inner, *steps)), BLOCK=block,
    )  # fmt: skip


def _npr_backward_results(grad, x, grid_size, anchor, channels_last):
    return _empty(x, x.shape, x.dtype, channels_last)


def _npr_backward(out, grad, x, grid_size, anchor, channels_last):
    height, width = grad.shape[2:]
    out[:, :, height:].zero_()
    out[..., width:].zero_()
    if grad.numel() == 0:
        return
    images, channels = x.shape[:2]
    inner = channels if channels_last else 1
    rows, columns = height // grid_size, width // grid_size
    block = min(512, triton.next_power_of_2(columns * inner))
    grid = (images * (channels // inner) * rows * triton.cdiv(columns * inner, block),)
    strides = (*grad.stride(), *x.stride(), *out.stride())
    launch(
        npr_backward_kernel, x.device, 4, grid, grad, x, out, *strides, channels, rows, columns,
        GRID=grid_size, ANCHOR=anchor, INNER=inner, T=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK=block,
    )  # fmt: skip


# ---- npr_conv2d


def _npr_conv2d_results(x, weight, bias, stride, padding, grid_size, anchor, scale, channels_last):
    size = arguments.convolution_output_size(x, weight, stride, padding, grid_size)
    return _empty(x, (x.shape[0], weight.shape[0], *size), weight.dtype, channels_last)


def _npr_conv2d(out, x, weight, bias, stride, padding, grid_size, anchor, scale, channels_last):
    if out.numel() == 0:
        return
    images, out_channels, rows, columns = out.shape
    geometry = _geometry(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    arithmetic = _arithmetic(x, weight.dtype, anchor)
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    tile = _tile(out_channels, arithmetic, CONVOLUTION_TILE, PLAIN_CONVOLUTION_TILE)
    blocks = _blocks(tile, across)
    grid = (_tile_count(images, rows, across, blocks), triton.cdiv(out_channels, tile.outputs))
    sizes = (*x.stride(), *_trimmed(x, grid_size), rows, columns, out_channels)
    launch(
        npr_conv2d_kernel, x.device, tile.warps, grid, x, *_parameters(weight, bias, out), out, *sizes,
        GEOMETRY=geometry, HAS_BIAS=bias is not None, CHANNELS_LAST=channels_last, **arithmetic, **blocks,
        BLOCK_O=tile.outputs, BLOCK_K=_element_block(geometry, arithmetic),
    )  # fmt: skip


def _tile(out_channels: int, arithmetic: dict, tile: Tile, plain: Tile) -> Tile:
    """Products without tensor cores leave no registers for large tiles; the interpreter is fastest with large ones."""
    if INTERPRETED:
        return Tile(256, _output_block(out_channels, 64), 8)
    tile = plain if _plain(arithmetic) else tile
    return tile._replace(outputs=_output_block(out_channels, tile.outputs))


def _parameters(weight: Tensor, bias: Tensor | None, absent: Tensor) -> tuple[Tensor, Tensor]:
    return weight.contiguous(), absent if bias is None else bias.contiguous()


def _grad_weight_results(grad, x, kernel, stride, padding, grid_size, anchor, scale):
    return x.new_empty((grad.shape[1], x.shape[1], *kernel), dtype=_accumulated(grad, x))


def _grad_weight(out, grad, x, kernel, stride, padding, grid_size, anchor, scale):
    geometry = _geometry(x, kernel, stride, padding, grid_size, anchor, scale)
    images, out_channels, rows, columns = grad.shape
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    arithmetic = _arithmetic(x, grad.dtype, anchor)
    tile = _sum_tile(arithmetic, out_channels)
    blocks = _blocks(tile, across)
    count = _tile_count(images, rows, across, blocks)
    elements = out[0].numel()
    partials = _partials(out, tile, count, out_channels, elements)
    block = _element_block(geometry, arithmetic)
    grid = (len(partials), triton.cdiv(out_channels, tile.outputs), triton.cdiv(elements, block))
    strides, unit = _gradient_strides(grad)
    sizes = (*strides, *x.stride(), *_trimmed(x, grid_size), rows, columns, out_channels, count)
    if count:
        launch(
            npr_conv2d_grad_weight_kernel, x.device, tile.warps, grid, grad, x, partials, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks, BLOCK_O=tile.outputs, BLOCK_K=block,
        )  # fmt: skip
    _add_partials(partials, out.flatten(1), None, geometry, square=False)


def _sum_tile(arithmetic: dict, out_channels: int, warps: int = 4) -> Tile:
    """One, on every device: the order of the sum depends on it. Without tensor cores a dot unrolls its positions."""
    if _plain(arithmetic):
        return Tile(32, _output_block(out_channels, 32), 1)
    return Tile(32 * warps, _output_block(out_channels, 64), warps)


def _partials(like: Tensor, tile: Tile, tiles: int, *shape: int) -> Tensor:
    """Uninitialised partial sums, one for each program: the same number on every device."""
    return like.new_empty((min(tiles, WARPS // tile.warps), *shape))


def _add_partials(partials: Tensor, out: Tensor, last: Tensor | None, geometry: Geometry, square: bool) -> None:
    grid = (len(out), triton.cdiv(partials.shape[2], 32))
    launch(
        partial_sums_kernel, out.device, 4, grid, partials, out, out if last is None else last, *partials.shape[:2],
        GEOMETRY=geometry, SQUARE=square, LAST=last is not None, BLOCK_P=64, BLOCK_K=32,
    )  # fmt: skip


def _grad_input_results(grad, x, weight, stride, padding, grid_size, anchor, scale, channels_last):
    return _empty(x, x.shape, x.dtype, channels_last)


def _grad_input(out, grad, x, weight, stride, padding, grid_size, anchor, scale, channels_last):
    geometry = _geometry(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    height, width = _trimmed(x, grid_size)
    images, out_channels, rows, columns = grad.shape
    dtype = _accumulated(grad, x, weight)
    gradient = _empty(x, (images, x.shape[1], height, width), dtype, True)
    arithmetic = _arithmetic(x, weight.dtype, anchor)
    del arithmetic["PATCH"]
    tile = Tile(64, _output_block(out_channels, 32), 4)
    size = triton.cdiv(height, stride[0]), triton.cdiv(width, stride[1])
    blocks = _blocks(tile, size[1])
    grid = (_tile_count(images, *size, blocks), stride[0] * stride[1], triton.cdiv(x.shape[1], 16))
    strides, unit = _gradient_strides(grad)
    sizes = (*strides, height, width, rows, columns, out_channels)
    if gradient.numel():
        launch(
            npr_conv2d_grad_map_kernel, x.device, tile.warps, grid, grad, weight.contiguous(), gradient, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks,
            BLOCK_O=tile.outputs, BLOCK_C=16,
        )  # fmt: skip
    _npr_backward(out, gradient, x, grid_size, anchor, channels_last)


# ---- the stem


def _pooled_shape(x, weight, stride, padding, grid_size):
    size = arguments.convolution_output_size(x, weight, stride, padding, grid_size)
    return (x.shape[0], weight.shape[0], *(arguments.output_size(n, 3, 2, 1) for n in size))


def _npr_stem_results(x, weight, bias, stride, padding, grid_size, anchor, scale):
    return _empty(x, _pooled_shape(x, weight, stride, padding, grid_size), weight.dtype, True)


def _npr_stem_argmax_results(x, weight, bias, stride, padding, grid_size, anchor, scale):
    out = _npr_stem_results(x, weight, bias, stride, padding, grid_size, anchor, scale)
    return out, torch.empty_like(out, dtype=torch.uint8)


def _npr_stem(out, *args):
    _stem(out, None, *args)


def _npr_stem_argmax(results, *args):
    _stem(*results, *args)


def _stem(out, argmax, x, weight, bias, stride, padding, grid_size, anchor, scale):
    if out.numel() == 0:
        return
    images, out_channels, rows, columns = out.shape
    geometry = _geometry(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    arithmetic = _arithmetic(x, weight.dtype, anchor)
    if _plain(arithmetic):
        geometry = geometry._replace(paper=False)  # its patches leave too few registers
    convolution_size = arguments.convolution_output_size(x, weight, stride, padding, grid_size)
    tile = _tile(out_channels, arithmetic, STEM_TILE if argmax is None else ARGMAX_TILE, PLAIN_STEM_TILE)
    blocks = _blocks(tile, columns)
    grid = (_tile_count(images, rows, columns, blocks), triton.cdiv(out_channels, tile.outputs))
    tensors = (x, *_parameters(weight, bias, out), out, out if argmax is None else argmax)
    sizes = (*x.stride(), *_trimmed(x, grid_size), *convolution_size, rows, columns, out_channels)
    launch(
        npr_stem_kernel, x.device, tile.warps, grid, *tensors, *sizes,
        GEOMETRY=geometry, HAS_BIAS=bias is not None, ARGMAX=argmax is not None, **arithmetic, **blocks,
        BLOCK_O=tile.outputs, BLOCK_K=_element_block(geometry, arithmetic),
    )  # fmt: skip


def _npr_moments_results(x, kernel, stride, padding, grid_size, anchor, scale):
    elements = x.shape[1] * math.prod(kernel)
    return x.new_empty(elements, dtype=torch.float64), x.new_empty((elements, elements), dtype=torch.float64)


def _npr_moments(results, x, kernel, stride, padding, grid_size, anchor, scale):
    first, second = results
    geometry = _geometry(x, kernel, stride, padding, grid_size, anchor, scale)
    height, width = _trimmed(x, grid_size)
    rows = arguments.output_size(height, kernel[0], stride[0], padding[0])
    columns = arguments.output_size(width, kernel[1], stride[1], padding[1])
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    arithmetic = _arithmetic(x, torch.float32, anchor)
    arithmetic["SPLIT"] = False  # whole float32 numbers take fewer instructions in this product than their parts
    del arithmetic["FACTOR"]
    tile = _sum_tile(arithmetic, 0)
    blocks = _blocks(tile, across)
    count = _tile_count(x.shape[0], rows, across, blocks)
    partials = _partials(first, tile, count, len(first) + 1, len(first) + 1)
    block = _element_block(geometry, arithmetic)
    side = triton.cdiv(len(first) + 1, block)
    sizes = (*x.stride(), height, width, rows, columns, count)
    if count:
        launch(
            npr_moments_kernel, x.device, tile.warps, (len(partials), side, side), x, partials, *sizes,
            GEOMETRY=geometry, **arithmetic, **blocks, BLOCK_K=block,
        )  # fmt: skip
    _add_partials(partials, second, first, geometry, square=True)


def _stem_grad_weight_results(grad, argmax, x, kernel, stride, padding, grid_size, anchor, scale):
    products = _grad_weight_results(grad, x, kernel, stride, padding, grid_size, anchor, scale)
    return products, products.new_empty(grad.shape[1])


def _stem_grad_weight(results, grad, argmax, x, kernel, stride, padding, grid_size, anchor, scale):
    products, sums = results
    geometry = _geometry(x, kernel, stride, padding, grid_size, anchor, scale)
    images, out_channels, rows, columns = grad.shape
    height, width = _trimmed(x, grid_size)
    argmax = argmax.contiguous(memory_format=torch.channels_last)
    arithmetic = _arithmetic(x, grad.dtype, anchor)
    if _plain(arithmetic):
        geometry = geometry._replace(paper=False)  # its patches leave too few registers
    tile = _sum_tile(arithmetic, min(out_channels, 32), warps=2)  # gradients and patches fill the registers
    blocks = _blocks(tile, columns)
    count = _tile_count(images, rows, columns, blocks)
    elements = products[0].numel()
    partials = _partials(products, tile, count, out_channels, elements + 1)
    block = _element_block(geometry, arithmetic)
    grid = (len(partials), triton.cdiv(out_channels, tile.outputs), triton.cdiv(elements + 1, block))
    size = (
        arguments.output_size(height, kernel[0], stride[0], padding[0]),
        arguments.output_size(width, kernel[1], stride[1], padding[1]),
    )
    strides, unit = _gradient_strides(grad)
    sizes = (*strides, *x.stride(), height, width, *size, rows, columns, out_channels, count)
    if count:
        launch(
            npr_stem_grad_weight_kernel, x.device, tile.warps, grid, grad, argmax, x, partials, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks, BLOCK_O=tile.outputs, BLOCK_K=block,
        )  # fmt: skip
    _add_partials(partials, products.flatten(1), sums, geometry, square=False)


# ---- the operators themselves

_operator(
    "npr(Tensor x, int grid_size, int anchor, bool channels_last) -> Tensor",
    _npr_results,
    _npr,
)
_operator(
    "npr_backward(Tensor grad, Tensor x, int grid_size, int anchor, bool channels_last) -> Tensor",
    _npr_backward_results,
    _npr_backward,
)
_operator(
    f"npr_conv2d(Tensor x, Tensor weight, Tensor? bias, {_CONVOLUTION}, bool channels_last) -> Tensor",
    _npr_conv2d_results,
    _npr_conv2d,
)
_operator(
    f"npr_conv2d_grad_weight(Tensor grad, Tensor x, int[] kernel, {_CONVOLUTION}) -> Tensor",
    _grad_weight_results,
    _grad_weight,
)
_operator(
    f"npr_conv2d_grad_input(Tensor grad, Tensor x, Tensor weight, {_CONVOLUTION}, bool channels_last) -> Tensor",
    _grad_input_results,
    _grad_input,
)
_operator(
    f"npr_stem(Tensor x, Tensor weight, Tensor? bias, {_CONVOLUTION}) -> Tensor",
    _npr_stem_results,
    _npr_stem,
)
_operator(
    f"npr_stem_argmax(Tensor x, Tensor weight, Tensor? bias, {_CONVOLUTION}) -> (Tensor, Tensor)",
    _npr_stem_argmax_results,
    _npr_stem_argmax,
)
_operator(
    f"npr_moments(Tensor x, int[] kernel, {_CONVOLUTION}) -> (Tensor, Tensor)",
    _npr_moments_results,
    _npr_moments,
)
_operator(
    f"npr_stem_grad_weight(Tensor grad, Tensor argmax, Tensor x, int[] kernel, {_CONVOLUTION}) -> (Tensor, Tensor)",
    _stem_grad_weight_results,
    _stem_grad_weight,
)
