"""Patches of the NPR map in registers, computed from the image. The kernels multiply these patches.

A patch tile has the shape (positions, elements): M positions of the convolution, each with K = C * KH * KW elements,
padded to a power of two. Differences are computed in float32 (float64 for float64 images), before any product in low
precision. Padding and everything outside the image is zero.

There are two ways to make a tile. `gather_patches` serves every geometry. It needs two loads per element (the pixel and
its anchor; more for a mean or maximum), with about 25 instructions each. `cell_row` and `cell_patch` serve the paper's
case: cells of 2x2 with anchor 0, a 3x3 kernel, stride 2, padding 1 and three channels. A thread then has a pair of
convolution columns. It reads the 8 pixels of a row that the pair sees as wide words (6 loads of 4 elements), computes
every difference once (9 per cell) and composes each patch in registers. That takes about 75 instructions per position,
or 3 per element.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from npr_kernels import triton_runtime

MEAN, MAX = -1, -2  # codes of the anchors that are not a pixel index
SCATTERED, PACKED, PLANAR = 0, 1, 2  # layouts of four neighbouring pixels in memory (Geometry.layout)
INTERPRETED = tl.constexpr(triton_runtime.INTERPRETED)


class Geometry(NamedTuple):
    """The constants for which a kernel is compiled.

    Kernels must assign a field to a name before they use it: `A: tl.constexpr = GEOMETRY.a`.
    """

    channels: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    padding_height: int
    padding_width: int
    grid_size: int
    anchor: int  # pixel index in the cell, MEAN or MAX
    paper: bool  # whether cell_row and cell_patch can be used
    layout: int  # for cell_row: SCATTERED, or aligned vectors of four: PACKED (N, H, W, C) or PLANAR (N, C, H, W)
    wide: bool  # whether offsets within one image need 64 bits
    scale: float  # the NPR map is multiplied by scale * factors; scale is positive
    factors: tuple[float, ...]  # one, or one per channel, at most 1 in magnitude; weights are multiplied by them


@triton.jit
def weight_index(k, GEOMETRY: tl.constexpr):
    """Return the index in ``weight.flatten(1)`` of patch element k.

    cell_patch orders the elements by tap; the tap that is always zero comes last.
    """
    if GEOMETRY.paper:
        tap = k // 3
        return k % 3 * 9 + tl.where(tap < 4, tap, tl.where(tap < 8, tap + 1, 4))
    else:
        return k


@triton.jit
def channel_factor(channel, GEOMETRY: tl.constexpr, T: tl.constexpr):
    """Return the factor of each channel in ``channel`` (K,), of type T."""
    FACTORS: tl.constexpr = GEOMETRY.factors
    COUNT: tl.constexpr = len(GEOMETRY.factors)
    factor = tl.full(channel.shape, FACTORS[0], T)
    for c in tl.static_range(1, COUNT):
        factor = tl.where(channel == c, tl.full(channel.shape, FACTORS[c], T), factor)
    return factor


@triton.jit
def weight_tile(
    weight,
    first,
    outputs,
    out_channels,
    GEOMETRY: tl.constexpr,
    T: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Load elements first .. first + BLOCK_K of the weights of ``outputs``, times their channel's factor: (K, O)."""
    CHANNELS: tl.constexpr = GEOMETRY.channels
    TAPS: tl.constexpr = GEOMETRY.kernel_height * GEOMETRY.kernel_width
    k = first + tl.arange(0, BLOCK_K)
    there = k < CHANNELS * TAPS
    k = weight_index(k, GEOMETRY)
    offsets = outputs[None, :].to(tl.int64) * (CHANNELS * TAPS) + k[:, None]
    values = tl.load(weight + offsets, mask=there[:, None] & (outputs < out_channels)[None, :], other=0.0)
    return (values.to(T) * channel_factor(k // TAPS, GEOMETRY, T)[:, None]).to(FACTOR)


@triton.jit
def gather_patches(
    image,
    stride_c,
    stride_h,
    stride_w,
    rows,
    columns,
    inside,
    first,
    height,
    width,
    GEOMETRY: tl.constexpr,
    T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute elements first .. first + BLOCK_K of the patches at the positions (rows, columns), of type T."""
    KERNEL_HEIGHT: tl.constexpr = GEOMETRY.kernel_height
    KERNEL_WIDTH: tl.constexpr = GEOMETRY.kernel_width
    TAPS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    CHANNELS: tl.constexpr = GEOMETRY.channels
    GRID: tl.constexpr = GEOMETRY.grid_size
    ANCHOR: tl.constexpr = GEOMETRY.anchor
    INDEX: tl.constexpr = tl.int64 if GEOMETRY.wide else tl.int32
    k = first + tl.arange(0, BLOCK_K)
    tap = k % TAPS
    plane = ((k // TAPS).to(INDEX) * stride_c)[None, :]
    y = (rows * GEOMETRY.stride_height - GEOMETRY.padding_height)[:, None] + (tap // KERNEL_WIDTH)[None, :]
    x = (columns * GEOMETRY.stride_width - GEOMETRY.padding_width)[:, None] + (tap % KERNEL_WIDTH)[None, :]
    there = inside[:, None] & (k < CHANNELS * TAPS)[None, :] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixel = tl.load(image + (plane + y.to(INDEX) * stride_h + x.to(INDEX) * stride_w), mask=there, other=0).to(T)
    top = (y // GRID * GRID).to(INDEX)
    left = (x // GRID * GRID).to(INDEX)
    if ANCHOR >= 0:
        offset = (top + ANCHOR // GRID) * stride_h + (left + ANCHOR % GRID) * stride_w
        anchor = tl.load(image + (plane + offset), mask=there, other=0).to(T)
    else:
        anchor = tl.full(pixel.shape, 0.0 if ANCHOR == -1 else float("-inf"), T)
        for i in range(GRID):
            for j in range(GRID):
                offset = (top + i) * stride_h + (left + j) * stride_w
                value = tl.load(image + (plane + offset), mask=there, other=0).to(T)
                if ANCHOR == -1:
                    anchor += value
                else:
                    anchor = tl.where((value > anchor) | (value != value), value, anchor)
        if ANCHOR == -1:
            anchor = anchor / (GRID * GRID)
    return tl.where(there, pixel - anchor, 0.0)


@triton.jit
def _split_four(values):
    """Split (M, 4) into four tensors (M,)."""
    even, odd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _four_pixels(image, offset, stride_c, stride_w, column, width, inside, GEOMETRY: tl.constexpr, T: tl.constexpr):
    """Load pixels column .. column + 3 of the row at ``offset``: 12 tensors (M,), index 3 * pixel + channel."""
    LAYOUT: tl.constexpr = GEOMETRY.layout
    INDEX: tl.constexpr = tl.int64 if GEOMETRY.wide else tl.int32
    lane = tl.arange(0, 4)[None, :]
    if LAYOUT == 1:  # PACKED
        there = (inside & (column >= 0) & (column < width))[:, None]
        start = tl.multiple_of(offset + column.to(INDEX) * 3, 4)[:, None]
        a, b, c, d = _split_four(tl.load(image + (start + lane), mask=there, other=0).to(T))
        e, f, g, h = _split_four(tl.load(image + (start + (4 + lane)), mask=there, other=0).to(T))
        i, j, k, l = _split_four(tl.load(image + (start + (8 + lane)), mask=there, other=0).to(T))  # noqa: E741
        return a, b, c, d, e, f, g, h, i, j, k, l
    elif LAYOUT == 2:  # PLANAR
        there = (inside & (column >= 0) & (column < width))[:, None]
        start = tl.multiple_of(offset + column.to(INDEX), 4)[:, None]
        plane = tl.multiple_of(tl.cast(stride_c, INDEX), 4)
        a, d, g, j = _split_four(tl.load(image + (start + lane), mask=there, other=0).to(T))
        b, e, h, k = _split_four(tl.load(image + (start + plane + lane), mask=there, other=0).to(T))
        c, f, i, l = _split_four(tl.load(image + (start + 2 * plane + lane), mask=there, other=0).to(T))  # noqa: E741
        return a, b, c, d, e, f, g, h, i, j, k, l
    else:
        pixels = ()
        for p in tl.static_range(4):
            there = inside & (column + p >= 0) & (column + p < width)
            for c in tl.static_range(3):
                pointer = image + (offset + (column + p).to(INDEX) * stride_w + tl.cast(stride_c, INDEX) * c)
                pixels = pixels + (tl.load(pointer, mask=there, other=0).to(T),)
        return pixels


@triton.jit
def cell_row(
    image,
    stride_c,
    stride_h,
    stride_w,
    row,
    group,
    inside,
    height,
    width,
    GEOMETRY: tl.constexpr,
    T: tl.constexpr,
):
    """Compute the differences in cells 2 * group - 2 .. 2 * group + 1 of the cell row ``row``; zero outside the image.

    Returns 36 tensors (M,) of type T with index 9 * cell + 3 * pixel + channel. Pixel 0 is on the right of the anchor,
    pixel 1 below it, pixel 2 diagonal to it.
    """
    INDEX: tl.constexpr = tl.int64 if GEOMETRY.wide else tl.int32
    inside = inside & (row >= 0) & (2 * row < height)
    above = (2 * row).to(INDEX) * stride_h
    if GEOMETRY.layout != 0:
        above = tl.multiple_of(above, 4)
    below = above + stride_h
    differences = ()
    for half in tl.static_range(2):
        column = 4 * group - 4 + 4 * half
        upper = _four_pixels(image, above, stride_c, stride_w, column, width, inside, GEOMETRY, T)
        lower = _four_pixels(image, below, stride_c, stride_w, column, width, inside, GEOMETRY, T)
        for cell in tl.static_range(2):
            for c in tl.static_range(3):
                differences = differences + (upper[6 * cell + 3 + c] - upper[6 * cell + c],)
            for c in tl.static_range(3):
                differences = differences + (lower[6 * cell + c] - upper[6 * cell + c],)
            for c in tl.static_range(3):
                differences = differences + (lower[6 * cell + 3 + c] - upper[6 * cell + c],)
    return differences


@triton.jit
def cell_patch(upper, lower, CELL: tl.constexpr, last, PATCH: tl.constexpr):
    """Compose the patch of the convolution column of cell 1, 2 or 3 from two rows of cells.

    Returns (M, 32), in the order of weight_index. ``last`` (M,) becomes element 27, the first after the patch's own 27;
    the other elements are zero.
    """
    zero = tl.zeros_like(upper[0])
    LEFT: tl.constexpr = 9 * CELL - 9
    HERE: tl.constexpr = 9 * CELL
    patch = ()
    for c in tl.static_range(3):
        patch = patch + (upper[LEFT + 6 + c],)
    for c in tl.static_range(6):
        patch = patch + (upper[HERE + 3 + c],)
    for c in tl.static_range(3):
        patch = patch + (lower[LEFT + c],)
    for c in tl.static_range(3):
        patch = patch + (lower[HERE + c],)
    for c in tl.static_range(3):
        patch = patch + (lower[LEFT + 6 + c],)
    for c in tl.static_range(6):
        patch = patch + (lower[HERE + 3 + c],)
    patch = patch + (zero,) * 8
    for level in tl.static_range(5):  # 32 tensors (M,) become 16 tensors (M, 2), and so on to one (M, 2, 2, 2, 2, 2)
        joined = ()
        for i in tl.static_range(16 >> level):
            joined = joined + (tl.join(patch[i], patch[i + (16 >> level)]),)
        patch = joined
    patch = tl.reshape(patch[0], (zero.shape[0], 32))
    return tl.where((tl.arange(0, 32) == 27)[None, :], last[:, None], patch).to(PATCH)


@triton.jit
def tile_positions(tile, height, width, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Return image, rows and columns (M,) of a tile of BLOCK_Y x BLOCK_X positions, and which of them are inside."""
    across = tl.cdiv(width, BLOCK_X)
    down = tl.cdiv(height, BLOCK_Y)
    m = tl.arange(0, BLOCK_Y * BLOCK_X)
    rows = tile // across % down * BLOCK_Y + m // BLOCK_X
    columns = tile % across * BLOCK_X + m % BLOCK_X
    return tl.cast(tile // across // down, tl.int64), rows, columns, (rows < height) & (columns < width)


@triton.jit
def image_start(x, n, stride_n, GEOMETRY: tl.constexpr):
    """Return the address of image n (int64) of x."""
    offset = n * stride_n
    if GEOMETRY.layout != 0:
        offset = tl.multiple_of(offset, 4)
    return x + offset


@triton.jit
def dense_offsets(n, rows, columns, outputs, height, width, channels, CHANNELS_LAST: tl.constexpr):
    """Return the offsets (M, O) of positions (M,) and channels (O,) in a dense tensor (N, channels, height, width)."""
    if CHANNELS_LAST:
        start = n * height * (width * channels) + rows.to(tl.int64) * (width * channels) + columns * channels
        return start[:, None] + outputs[None, :]
    else:
        start = n * channels * height * width + rows.to(tl.int64) * width + columns
        return start[:, None] + (outputs.to(tl.int64) * height * width)[None, :]


@triton.jit
def channel_offsets(start, outputs, stride_o, UNIT: tl.constexpr):
    """Return offsets (M, O) of channels (O,) from ``start`` (M,), in units of UNIT. UNIT > 1 means channels_last."""
    if UNIT > 1:
        return (start * UNIT)[:, None] + outputs[None, :]
    else:
        return start[:, None] + (outputs.to(tl.int64) * stride_o)[None, :]


@triton.jit
def _leading(values):
    """Return the leading 8 bits of the significands of ``values`` (float32), as bfloat16 and as float32."""
    bits = values.to(tl.uint32, bitcast=True)
    leading = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return leading, (bits & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _split(values):
    """Return three bfloat16 tensors whose sum is ``values`` (float32), the largest first. Only it has inf and NaN."""
    first, taken = _leading(values)
    rest = tl.where(tl.abs(values) < float("inf"), values - taken, 0.0)
    second, taken = _leading(rest)
    third, _ = _leading(rest - taken)
    return first, second, third


@triton.jit
def _dot(a, b, total, T: tl.constexpr):
    if INTERPRETED:  # NumPy has no bfloat16, so the interpreter would multiply bit patterns
        a = a.to(T)
        b = b.to(T)
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=T)


@triton.jit
def multiply(a, b, T: tl.constexpr, SPLIT: tl.constexpr):
    """Compute the product a b of type T. 16-bit factors use tensor cores; with SPLIT, float32 factors use them, too.

    With SPLIT, the product is as exact as in float32: a float32 number is the sum of three bfloat16 numbers, and
    products of bfloat16 numbers are exact. If both factors are split, three of the nine products are left out, because
    together they are smaller than one rounding.
    """
    zeros = tl.zeros((a.shape[0], b.shape[1]), T)
    if not SPLIT or b.dtype != tl.float32:
        if T == tl.float64:  # hides the loads, because Triton 3.6 aborts on factors that come from 8-bit loads
            a = tl.sum(a[:, :, None], 2)
            b = tl.sum(b[:, :, None], 2)
        return _dot(a, b, zeros, T)
    elif a.dtype == tl.float32:
        a1, a2, a3 = _split(a)
        b1, b2, b3 = _split(b)
        small = _dot(a2, b2, _dot(a1, b3, _dot(a3, b1, zeros, T), T), T)
        small = _dot(a1, b2, _dot(a2, b1, small, T), T)
        small = tl.where(tl.abs(small) < float("inf"), small, 0.0)  # only the largest product may have inf and NaN
        return _dot(a1, b1, small, T)
    else:  # the smallest products come first, because they would be lost next to the large ones
        b1, b2, b3 = _split(b)
        return _dot(a, b1, _dot(a, b2, _dot(a, b3, zeros, T), T), T)
