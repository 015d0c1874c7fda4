"""Triton kernels for residual bottlenecks: products of pixels and channels in channels_last, 16-bit, with float32 sums.

`pointwise_kernel` computes conv1 of the first block. `bottleneck_kernel` computes the rest of a block and conv1 of the
next block. A tile of pixels stays in registers from one product to the next. So only conv1's result, with 64 or 128
channels, is written and read once between two blocks, and y is written for the next shortcut only. A program has M
pixels of one image, so no result depends on the rest of the batch.

For an image of 256x256 pixels, the seven blocks need 4.43 GFLOP and move 23.5 MB through memory, which takes 7.8 us at
3 TB/s. The L2 cache is the limit: a tile's inputs are read from it nine times, once for each tap of the 3x3
convolution, and every tile reads the weights. These 80 MB per image take about 15 us.
"""

from __future__ import annotations

import triton
import triton.language as tl

from npr_kernels import triton_runtime

INTERPRETED = tl.constexpr(triton_runtime.INTERPRETED)
SIZES = ["height", "width", "out_height", "out_width", "x_height", "x_width", "y_height", "y_width"]


@triton.jit
def multiply(a, b, total):
    if INTERPRETED:  # NumPy has no bfloat16, so the interpreter would multiply bit patterns
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def relu(total):
    return tl.where(total <= 0, 0.0, total)  # NaN stays NaN


@triton.jit
def rounded(values, dtype: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:  # a GPU rounds to nearest even; the interpreter would truncate
        bits = values.to(tl.uint32, bitcast=True)
        values = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return values.to(dtype)


@triton.jit
def pixel_tile(pixels, M: tl.constexpr):
    """Return the program's image (int64), its M pixels as indices in the image, and which of them exist."""
    tiles = tl.cdiv(pixels, M)
    p = tl.program_id(0) % tiles * M + tl.arange(0, M)
    return (tl.program_id(0) // tiles).to(tl.int64), p, p < pixels


@triton.jit(do_not_specialize=["pixels"])
def pointwise_kernel(
    x,  # (N, pixels, INPUT)
    weight,  # (INPUT, OUTPUT)
    bias,  # (OUTPUT,) float32
    out,  # (N, pixels, OUTPUT)
    pixels,  # number of pixels of an image
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INDEX: tl.constexpr,  # type that counts the elements of an image
):
    """Compute a 1x1 convolution with bias and ReLU."""
    n, p, exists = pixel_tile(pixels, M)
    p = p.to(INDEX)
    k = tl.arange(0, BLOCK_K)
    o = tl.arange(0, OUTPUT)
    rows = x + n * pixels * INPUT + (p[:, None] * INPUT + k[None, :])
    columns = weight + (k[:, None] * OUTPUT + o[None, :])
    total = tl.zeros((M, OUTPUT), tl.float32)
    for first in range(0, INPUT, BLOCK_K):
        a = tl.load(rows + first, mask=exists[:, None], other=0.0)
        total = multiply(a, tl.load(columns + first * OUTPUT), total)
    y = rounded(relu(total + tl.load(bias + o)[None, :]), out.dtype.element_ty)
    tl.store(out + n * pixels * OUTPUT + (p[:, None] * OUTPUT + o[None, :]), y, mask=exists[:, None])


@triton.jit(do_not_specialize=SIZES)
def bottleneck_kernel(
    middle,  # (N, height, width, MIDDLE): conv1's result
    x,  # (N, x_height, x_width, INPUT): the shortcut reads every X_STRIDE-th pixel
    weight2,  # (9 * MIDDLE, MIDDLE)
    bias2,  # (MIDDLE,) float32
    weight3,  # (MIDDLE, OUTPUT)
    bias3,  # (OUTPUT,) float32, including the bias of the shortcut's convolution
    shortcut_weight,  # (INPUT, OUTPUT), any tensor without PROJECTED
    next_weight,  # (OUTPUT, NEXT), any tensor without NEXT
    next_bias,  # (NEXT,) float32, any tensor without NEXT
    y,  # (N, y_height, y_width, OUTPUT): every Y_STRIDE-th pixel of the result
    next_middle,  # (N, out_height, out_width, NEXT)
    sums,  # (N, tiles of an image, OUTPUT) float32, any tensor without SUMS
    height,
    width,
    out_height,
    out_width,
    x_height,
    x_width,
    y_height,
    y_width,
    MIDDLE: tl.constexpr,
    OUTPUT: tl.constexpr,
    INPUT: tl.constexpr,
    NEXT: tl.constexpr,  # channels of the next block's conv1, or 0 without a next block
    STRIDE: tl.constexpr,  # stride of conv2
    X_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,  # 0: y is not written
    PROJECTED: tl.constexpr,  # whether the shortcut is a convolution
    SUMS: tl.constexpr,  # whether to write the sums over the pixels of each tile
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Compute conv2, conv3, the shortcut and the ReLU of a block, then conv1 of the next block."""
    T: tl.constexpr = middle.dtype.element_ty
    n, p, exists = pixel_tile(out_height * out_width, M)
    row = p // out_width
    column = p % out_width
    k = tl.arange(0, BLOCK_K)
    c = tl.arange(0, MIDDLE)

    middle += n * height * width * MIDDLE
    total = tl.zeros((M, MIDDLE), tl.float32)
    PARTS: tl.constexpr = MIDDLE // BLOCK_K
    for step in range(9 * PARTS):
        tap = step // PARTS
        i = row * STRIDE + (tap // 3 - 1)
        j = column * STRIDE + (tap % 3 - 1)
        inside = exists & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        pixel = (i * width + j).to(INDEX) * MIDDLE + step % PARTS * BLOCK_K
        a = tl.load(middle + (pixel[:, None] + k[None, :]), mask=inside[:, None], other=0.0)
        b = tl.load(weight2 + ((step * BLOCK_K + k)[:, None] * MIDDLE + c[None, :]))
        total = multiply(a, b, total)
    second = rounded(relu(total + tl.load(bias2 + c)[None, :]), T)

    x += n * x_height * x_width * INPUT
    y += n * y_height * y_width * OUTPUT
    x_pixel = (row * X_STRIDE * x_width + column * X_STRIDE).to(INDEX) * INPUT
    kept = exists
    y_pixel = p.to(INDEX) * OUTPUT
    if Y_STRIDE > 1:
        kept = kept & (row % Y_STRIDE == 0) & (column % Y_STRIDE == 0)
        y_pixel = (row // Y_STRIDE * y_width + column // Y_STRIDE).to(INDEX) * OUTPUT
    following = tl.zeros((M, NEXT if NEXT else 1), tl.float32)
    next_c = tl.arange(0, NEXT if NEXT else 1)
    for first in range(0, OUTPUT, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        b = tl.load(weight3 + (c[:, None] * OUTPUT + o[None, :]))
        result = multiply(second, b, tl.zeros((M, BLOCK_O), tl.float32))
        if PROJECTED:
            for start in range(0, INPUT, BLOCK_K):
                pixels = tl.load(x + (x_pixel[:, None] + (start + k)[None, :]), mask=exists[:, None], other=0.0)
                weights = tl.load(shortcut_weight + ((start + k)[:, None] * OUTPUT + o[None, :]))
                result = multiply(pixels, weights, result)
        else:
            result += tl.load(x + (x_pixel[:, None] + o[None, :]), mask=exists[:, None], other=0.0).to(tl.float32)
        result = relu(result + tl.load(bias3 + o)[None, :])
        if SUMS:
            sum_ = tl.sum(tl.where(exists[:, None], result, 0.0), 0)
            tl.store(sums + (tl.program_id(0).to(tl.int64) * OUTPUT + o), sum_)
        result = rounded(result, T)
        if Y_STRIDE > 0:
            tl.store(y + (y_pixel[:, None] + o[None, :]), result, mask=kept[:, None])
        if NEXT > 0:
            b = tl.load(next_weight + (o[:, None] * NEXT + next_c[None, :]))
            following = multiply(result, b, following)
    if NEXT > 0:
        following = rounded(relu(following + tl.load(next_bias + next_c)[None, :]), T)
        next_middle += n * out_height * out_width * NEXT
        pixel = p.to(INDEX) * NEXT
        tl.store(next_middle + (pixel[:, None] + next_c[None, :]), following, mask=exists[:, None])


@triton.jit(do_not_specialize=["tiles", "pixels"])
def mean_kernel(
    sums,  # (N, tiles, CHANNELS) float32
    out,  # (N, CHANNELS) float32
    tiles,
    pixels,
    CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Compute the mean over the pixels of an image from the sums of its tiles, always added in the same order."""
    n = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    t = tl.arange(0, BLOCK_T)
    sums += n * tiles * CHANNELS
    total = tl.zeros((BLOCK_O,), tl.float32)
    for first in range(0, tiles, BLOCK_T):
        offsets = (first + t).to(tl.int64)[:, None] * CHANNELS + o[None, :]
        total += tl.sum(tl.load(sums + offsets, mask=(first + t < tiles)[:, None], other=0.0), 0)
    tl.store(out + n * CHANNELS + o, total / pixels.to(tl.float32))


@triton.jit
def dot_kernel(x, weight, out, CHANNELS: tl.constexpr):
    """Multiply a row of x (N, CHANNELS) by weight (CHANNELS,), float32. Every row adds in the same order."""
    row = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, CHANNELS)
    tl.store(out + row, tl.sum(tl.load(x + row * CHANNELS + o) * tl.load(weight + o), 0))
