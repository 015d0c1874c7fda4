"""The self-test of GPU backends on the user's machine, before the automatic choice uses them.

The first automatic use of a GPU backend runs a small case and compares it with the reference, by the rule of
:mod:`npr_kernels.tolerance`. The case has the operator, dtypes, geometry, scale and memory format of the call, runs on
the same device, and includes the gradients that the call may need. It takes some milliseconds after compilation, and
compiles only kernels that the call needs anyway. The result holds for the process. If a backend differs or fails to
launch, this is logged once, and the next backend serves such calls.

There is no test for explicit choices, while a CUDA graph is captured (the test would end the capture; the next call
outside of a capture is tested), and if NPR_KERNELS_SELF_TEST is 0. While torch.compile or torch.export traces, sizes
may be symbols, so the geometry of the authors' network is tested instead of that of the call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from npr_kernels import reference
from npr_kernels.backends.base import Backend, Call, Convolution, StemBackend
from npr_kernels.backends.cases import Case, on
from npr_kernels.tolerance import allowed, error, pool_at
from npr_kernels.tracing import constant

Tensors = tuple[Tensor, Tensor, Tensor | None]  # image, weight, bias
Errors = Iterator[tuple[str, float, float]]  # name of a function, its error, and the largest that is allowed

ENVIRONMENT_VARIABLE = "NPR_KERNELS_SELF_TEST"

NETWORK = Convolution((2, 2), (1, 1), scale=(2 / 3,))  # with NETWORK_SHAPE, that of the authors' network
NETWORK_SHAPE = (64, 3, 3, 3)
SLACK = 4  # factor on the rule's limit, so that another order of sums does not fail by chance
MOST_CHANNELS = 128  # channels of the result; more would take longer on the CPU and run the same program

_logger = logging.getLogger("npr_kernels")
_verdicts: dict[tuple[str, Call], str | None] = {}
_logged: set[tuple] = set()
_lock = threading.Lock()


def failure(backend: StemBackend, call: Call) -> str | None:
    """Return how ``backend`` fails a small case of ``call``; None if it passes or must not be tested now."""
    if not backend.SELF_TEST_SIZES:
        return None
    if torch.compiler.is_compiling():
        gradients = call.image_gradient, call.parameter_gradients
        return _failure_while_traced(backend, call.operator, call.device, call.x_dtype, call.dtype, *gradients)
    return _failure(backend, call)


@constant
def _failure_while_traced(
    backend: StemBackend,
    operator: str,
    device: torch.device,
    x_dtype: torch.dtype,
    dtype: torch.dtype,
    image_gradient: bool,
    parameter_gradients: bool,
) -> str | None:
    gradients: dict[str, Any] = {"image_gradient": image_gradient, "parameter_gradients": parameter_gradients}
    if operator == "npr":
        return _failure(backend, Call(operator, device, x_dtype, dtype, Convolution(), **gradients))
    return _failure(backend, Call(operator, device, x_dtype, dtype, NETWORK, NETWORK_SHAPE, **gradients))


def _failure(backend: StemBackend, call: Call) -> str | None:
    key = backend.NAME, _without_scale(call)
    if key in _verdicts:
        return _verdicts[key]
    if os.environ.get(ENVIRONMENT_VARIABLE) == "0" or _is_capturing(call.device):
        return None
    with _lock:
        if key not in _verdicts:
            try:
                _verdicts[key] = _isolated(call.device, lambda: _difference(backend, call))
            except RuntimeError:  # out of memory, or the process is ending; the next call tries again
                return None
            difference = _verdicts[key]
            if difference:
                _log(backend.NAME, call, difference)
        return _verdicts[key]


def _without_scale(call: Call) -> Call:
    """Return the call without the values of its scale, because kernels depend only on their number."""
    return replace(call, convolution=call.convolution._replace(scale=(1.0,) * len(call.convolution.scale)))


def _is_capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _isolated(device: torch.device, work: Callable[[], str | None]) -> str | None:
    """Run ``work()`` on ``device`` and its current stream, in a separate thread.

    A new thread has torch's defaults. Gradients are recorded, and the caller's autocast, inference mode and default
    device have no effect.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def on_stream() -> str | None:
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():  # this also sets the device
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(on_stream).result()


def _log(name: str, call: Call, difference: str) -> None:
    key = name, call.operator, call.device, call.x_dtype, call.dtype
    if key not in _logged:
        _logged.add(key)
        _logger.warning(
            "the %s backend is not used for %s of %s images and %s weights on %s: %s",
            name, call.operator, *(str(dtype).removeprefix("torch.") for dtype in key[3:]), call.device, difference,
        )  # fmt: skip


def _difference(backend: StemBackend, call: Call) -> str | None:
    """Return the first error of the backend, or None."""
    try:
        for size in backend.SELF_TEST_SIZES:
            for function, error_, limit in _errors(backend, call, size):
                if not error_ <= SLACK * limit:
                    return f"on a small case {function} has error {error_:.3g}, at most {SLACK * limit:.3g} is allowed"
    except torch.OutOfMemoryError:
        raise
    except Exception as exception:  # any error of a compiler or a driver, or a wrong shape
        return f"a small case failed: {type(exception).__name__}: {(str(exception).strip() or '-').splitlines()[0]}"
    return None


def _errors(backend: Any, call: Call, size: tuple[int, int]) -> Errors:
    """Yield name, error and largest allowed error of every function of ``backend`` that the call may need."""
    case, convolution = _small_case(call, size)
    tensors = case.tensors()
    exact = cast(Tensors, tuple(t if t is None or t.dtype == torch.uint8 else t.double() for t in tensors))
    placed = cast(Tensors, on(call.device, *tensors))
    if call.operator == "npr":
        yield from _npr_errors(backend, call, placed[0], tensors[0], exact[0])
    elif call.operator == "npr_conv2d":
        yield from _convolution_errors(backend, call, convolution, placed, tensors, exact)
    else:
        yield from _stem_errors(backend, call, convolution, placed, tensors, exact)


def _small_case(call: Call, size: tuple[int, int]) -> tuple[Case, Convolution]:
    """Return a case whose convolution has a result of ``size`` (rows, columns), and the convolution."""
    out_channels, channels, *kernel = call.weight_shape or NETWORK_SHAPE
    convolution = (
        call.convolution
        if call.weight_shape
        else NETWORK._replace(grid_size=call.convolution.grid_size, anchor=call.convolution.anchor)
    )
    unit = math.lcm(convolution.grid_size, 4)  # whole cells, and rows that can be read as words of four pixels
    sides = [
        max(unit, -(-((n - 1) * stride + side - 2 * padding) // unit) * unit)
        for n, stride, side, padding in zip(size, convolution.stride, kernel, convolution.padding, strict=True)
    ]
    case = Case(
        grid_size=convolution.grid_size, anchor=convolution.anchor, height=sides[0], width=sides[1], channels=channels,
        out_channels=min(out_channels, MOST_CHANNELS), kernel=(kernel[0], kernel[1]), stride=convolution.stride,
        padding=convolution.padding, dtype=call.x_dtype, weight_dtype=call.dtype,
        layout="channels_last" if call.channels_last else "contiguous",
    )  # fmt: skip
    return case, convolution


def _compared(function: str, result: Tensor, eager: Tensor, truth: Tensor) -> tuple[str, float, float]:
    if result.dtype != eager.dtype:
        raise TypeError(f"{function} gives {result.dtype} instead of {eager.dtype}")
    return function, error(result.cpu(), truth), allowed(error(eager, truth), eager.dtype)


def _gradient(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], index: int, grad: Tensor) -> Tensor:
    """Return the gradient of ``function(*tensors)`` in ``tensors[index]``."""
    arguments: list[Any] = list(tensors)
    arguments[index] = arguments[index].detach().requires_grad_()
    out = function(*arguments)
    return torch.autograd.grad(out, arguments[index], grad.to(out.dtype))[0]


def _random_gradient(like: Tensor) -> Tensor:
    """Return random numbers with the dtype and memory format of ``like``, on the CPU."""
    grad = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.empty_like(like, device="cpu").copy_(grad)


def _npr_errors(backend: Backend, call: Call, x: Tensor, image: Tensor, exact: Tensor) -> Errors:
    grid = call.convolution.grid_size, call.convolution.anchor
    result, eager = backend.npr(x, *grid), reference.npr(image, *grid)
    yield _compared("npr", result, eager, reference.npr(exact, *grid, torch.float64))
    if call.image_gradient:
        grad = _random_gradient(result)
        eager, truth = (_gradient(lambda x: reference.npr(x, *grid), [t], 0, grad) for t in (image, exact))
        yield _compared("npr_backward", backend.npr_backward(grad.to(x.device), x, *grid), eager, truth)


def _convolution_errors(
    backend: Backend, call: Call, convolution: Convolution, placed: Tensors, tensors: Tensors, exact: Tensors
) -> Errors:
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.npr_conv2d(x, weight, bias, *convolution)

    result = backend.npr_conv2d(*placed, convolution)
    yield _compared("npr_conv2d", result, forward(*tensors), forward(*exact))
    grad = _random_gradient(result)
    functions = [
        ("npr_conv2d_grad_input", 0, call.image_gradient),
        ("npr_conv2d_grad_weight", 1, call.parameter_gradients),
    ]
    for function, index, needed in functions:
        if needed:
            gradient = getattr(backend, function)(grad.to(result.device), *placed[:2], convolution)
            eager, truth = (_gradient(forward, t, index, grad) for t in (tensors, exact))
            yield _compared(function, gradient, eager, truth)


def _stem_errors(
    backend: StemBackend, call: Call, convolution: Convolution, placed: Tensors, tensors: Tensors, exact: Tensors
) -> Errors:
    x, weight, _ = placed
    kernel = weight.shape[2], weight.shape[3]
    if call.operator == "npr_batch_norm_stem":
        yield from _moments_errors(backend, kernel, convolution, x, tensors[0])
    eager, truth = (reference.npr_stem(t[0], t[1], t[2], *convolution) for t in (tensors, exact))
    if not (call.image_gradient or call.parameter_gradients):
        yield _compared("npr_stem", backend.npr_stem(*placed, convolution), eager, truth)
        return
    pooled, argmax = backend.npr_stem_argmax(*placed, convolution)
    yield _compared("npr_stem_argmax", pooled, eager, truth)
    positions = argmax.cpu()
    if positions.max() > 9 or not torch.equal(positions < 9, pooled.cpu() > 0):
        raise ValueError("npr_stem_argmax gives no position to positive values, or one to others")
    pool = pool_at(positions)
    chosen = pool(reference.npr_conv2d(exact[0], exact[1], exact[2], *convolution))
    yield "npr_stem_argmax", error(chosen, truth), allowed(error(eager, truth), eager.dtype)
    if call.parameter_gradients:
        grad = _random_gradient(pooled)
        gradients = backend.npr_stem_grad_weight(grad.to(x.device), argmax, x, kernel, convolution)

        def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return pool(reference.npr_conv2d(x, weight, bias, *convolution))

        for index, gradient in enumerate(gradients, start=1):  # of the weight, then of the bias
            eager, truth = (_gradient(forward, t, index, grad) for t in (tensors, exact))
            yield _compared("npr_stem_grad_weight", gradient.to(eager.dtype), eager, truth)


def _moments_errors(
    backend: StemBackend, kernel: tuple[int, int], convolution: Convolution, x: Tensor, image: Tensor
) -> Errors:
    wide = torch.promote_types(image.dtype, torch.float32) if image.is_floating_point() else torch.float32
    moments = (
        backend.npr_moments(x, kernel, convolution),
        reference.npr_moments(image, kernel, *convolution, dtype=wide),
        reference.npr_moments(image, kernel, *convolution),
    )
    for result, eager, truth in zip(*moments, strict=True):
        yield "npr_moments", error(result.cpu(), truth), allowed(error(eager, truth), wide)
