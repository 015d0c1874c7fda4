"""npr and npr_backward: the NPR map and its gradient.

These kernels work element by element, so memory limits their speed. A pixel is read and written once; its anchor comes
from the L1 cache. For a 256x256 image in float32, reading and writing 768 KiB each take 0.5 us at 3 TB/s. Elements are
processed in the order in which a row stores them (channels innermost for channels_last), so that loads and stores have
16 bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from npr_kernels.backends.triton.launch import kernel, launch
from npr_kernels.backends.triton.library import operator
from npr_kernels.backends.triton.specialisation import empty, trimmed


@kernel
def npr_kernel(
    x,  # (N, C, H, W), any strides
    out,  # the trimmed size; (N, H, W, C) contiguous if INNER is C, else (N, C, H, W) contiguous
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    channels,
    height,
    width,
    GRID: tl.constexpr,
    ANCHOR: tl.constexpr,
    INNER: tl.constexpr,  # channels within a row: all of them, or 1
    DENSE: tl.constexpr,  # whether the rows of x have no gaps
    ALIGNED: tl.constexpr,  # whether rows begin at multiples of 16 elements
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK elements of one row."""
    across = tl.cdiv(width * INNER, BLOCK)
    row = (tl.program_id(0) // across).to(tl.int64)
    element = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    elements = width * INNER
    if ALIGNED:
        elements = tl.multiple_of(elements, 16)
    there = element < elements
    y = row % height
    outer = row // height
    n = outer // (channels // INNER)
    start = x + n * stride_n + (outer % (channels // INNER)) * stride_c
    channel = (element % INNER).to(tl.int64) * stride_c
    column = element // INNER
    offset = element.to(tl.int64) if DENSE else column.to(tl.int64) * stride_w + channel
    above = n * stride_n + (outer % (channels // INNER)) * stride_c + y * stride_h
    if ALIGNED:
        above = tl.multiple_of(above, 16)
    pixel = tl.load(x + above + offset, mask=there, other=0).to(T)
    top = y // GRID * GRID
    left = (column // GRID * GRID).to(tl.int64)
    if ANCHOR >= 0:
        offset = (left + ANCHOR % GRID) * stride_w + channel
        anchor = tl.load(start + (top + ANCHOR // GRID) * stride_h + offset, mask=there, other=0).to(T)
    else:
        anchor = tl.full((BLOCK,), 0.0 if ANCHOR == -1 else float("-inf"), T)
        for i in range(GRID):
            for j in range(GRID):
                offset = (left + j) * stride_w + channel
                value = tl.load(start + (top + i) * stride_h + offset, mask=there, other=0).to(T)
                if ANCHOR == -1:
                    anchor += value
                else:
                    anchor = tl.where((value > anchor) | (value != value), value, anchor)
        if ANCHOR == -1:
            anchor = anchor / (GRID * GRID)
    tl.store(out + row * elements + element, pixel - anchor, mask=there)


@kernel
def npr_backward_kernel(
    grad,  # (N, C, H, W) of the trimmed size, any strides
    x,  # (N, C, H, W), any strides; only read for the anchor "max"
    out,  # the size of x, any strides; the trimmed rows and columns are not written
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    out_stride_n,
    out_stride_c,
    out_stride_h,
    out_stride_w,
    channels,
    cell_rows,
    cell_columns,
    GRID: tl.constexpr,
    ANCHOR: tl.constexpr,
    INNER: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK cells of one row of cells: the gradients of a cell are subtracted from that of the anchor."""
    across = tl.cdiv(cell_columns * INNER, BLOCK)
    row = (tl.program_id(0) // across).to(tl.int64)
    element = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    there = element < cell_columns * INNER
    top = row % cell_rows * GRID
    outer = row // cell_rows
    n = outer // (channels // INNER)
    channel = (outer % (channels // INNER)) + (element % INNER).to(tl.int64)
    left = (element // INNER).to(tl.int64) * GRID
    total = tl.zeros((BLOCK,), T)
    largest = tl.full((BLOCK,), float("-inf"), T)
    place = tl.full((BLOCK,), 0 if ANCHOR < 0 else ANCHOR, tl.int32)
    source = grad + n * grad_stride_n + channel * grad_stride_c
    target = out + n * out_stride_n + channel * out_stride_c
    pixels = x + n * stride_n + channel * stride_c
    for i in range(GRID):
        for j in range(GRID):
            offset = (top + i) * grad_stride_h + (left + j) * grad_stride_w
            total += tl.load(source + offset, mask=there, other=0.0).to(T)
            if ANCHOR == -2:
                offset = (top + i) * stride_h + (left + j) * stride_w
                value = tl.load(pixels + offset, mask=there, other=0.0).to(T)
                larger = (value > largest) | (value != value)
                largest = tl.where(larger, value, largest)
                place = tl.where(larger, i * GRID + j, place)
    for i in range(GRID):
        for j in range(GRID):
            offset = (top + i) * grad_stride_h + (left + j) * grad_stride_w
            value = tl.load(source + offset, mask=there, other=0.0).to(T)
            if ANCHOR == -1:
                value -= total / (GRID * GRID)
            else:
                value -= tl.where(place == i * GRID + j, total, 0.0)
            tl.store(target + (top + i) * out_stride_h + (left + j) * out_stride_w, value, mask=there)


def _npr_results(x, grid_size, anchor, channels_last):
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return empty(x, (*x.shape[:2], *trimmed(x, grid_size)), dtype, channels_last)


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
    return empty(x, x.shape, x.dtype, channels_last)


def npr_backward_into(out, grad, x, grid_size, anchor, channels_last):
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


operator(
    "npr(Tensor x, int grid_size, int anchor, bool channels_last) -> Tensor",
    _npr_results,
    _npr,
)
operator(
    "npr_backward(Tensor grad, Tensor x, int grid_size, int anchor, bool channels_last) -> Tensor",
    _npr_backward_results,
    npr_backward_into,
)
