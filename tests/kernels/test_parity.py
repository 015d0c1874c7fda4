"""Every backend against float64, forward and gradients, over the table of cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import npr_kernels
from npr_kernels.backends import registry
from npr_kernels.testing import IMAGE_DTYPES, TABLE, Case, allowed, assert_close, error, pool_at
from tests.kernels.parity import BACKENDS, DEVICES, FAST, double, gradients

OPERATORS = [npr_kernels.npr_conv2d, npr_kernels.npr_stem]


def batch_norm_stem(x, weight, bias, **options):
    return npr_kernels.npr_batch_norm_stem(x, weight, bias, None, None, None, None, **options)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_forward(case: Case, operator, backend: str):
    x, weight, bias = case.tensors(DEVICES[backend])
    truth = operator(*double(x, weight, bias), backend="eager", **case.options)
    eager = operator(x, weight, bias, backend="eager", **case.options)
    assert_close(operator(x, weight, bias, backend=backend, **case.options), eager, truth)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_convolution_gradients(case: Case, backend: str):
    x, weight, bias = case.tensors(DEVICES[backend])
    results = [
        gradients(npr_kernels.npr_conv2d, case, name, *tensors)
        for name, tensors in (
            (backend, (x, weight, bias)),
            ("eager", (x, weight, bias)),
            ("eager", double(x, weight, bias)),
        )
    ]
    for result, eager, truth in zip(*results, strict=True):
        assert_close(result, eager, truth)


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(*backend.values, case, marks=backend.marks)
        for backend in BACKENDS
        for case in (TABLE if backend in FAST else TABLE[::8])  # eager is what they are compared with
        if case.batch
    ],
    ids=str,
)
def test_stem_gradients(backend: str, case: Case):
    """The pooling's choice among nearly equal values depends on rounding, so the truth follows the choice made."""
    x, weight, bias = case.tensors(DEVICES[backend])
    pool = pool_as(backend, case, x, weight, bias)

    def stem_with_that_choice(x, weight, bias, **options):
        return pool(npr_kernels.npr_conv2d(x, weight, bias, **options))

    results = [
        gradients(npr_kernels.npr_stem, case, backend, x, weight, bias),
        gradients(stem_with_that_choice, case, "eager", x, weight, bias),
        gradients(stem_with_that_choice, case, "eager", *double(x, weight, bias)),
    ]
    for result, eager, truth in zip(*results, strict=True):
        assert_close(result, eager, truth)


def pool_as(backend: str, case: Case, x, weight, bias):
    """ReLU and pooling as a function of the convolution's output, taking the values that ``backend`` finds largest."""
    y = npr_kernels.npr_conv2d(x, weight, bias, backend="eager", **case.options)
    if backend == "eager":
        pooled, chosen = F.max_pool2d(y.relu(), 3, 2, 1, return_indices=True)

        def pool(y):
            return y.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen) * (pooled > 0)

    else:
        pooled, argmax = registry.get(backend).npr_stem_argmax(x, weight, bias, case.convolution)
        assert argmax.dtype == torch.uint8 and argmax.shape == pooled.shape and argmax.max() <= 9
        assert torch.equal(argmax != 9, pooled > 0)
        pool = pool_at(argmax)

    eager = npr_kernels.npr_stem(x, weight, bias, backend="eager", **case.options)
    truth = npr_kernels.npr_stem(*double(x, weight, bias), backend="eager", **case.options)
    found = pool(npr_kernels.npr_conv2d(*double(x, weight, bias), backend="eager", **case.options))
    assert error(found, truth) <= allowed(error(eager, truth), eager.dtype)  # largest but for rounding
    return pool


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("grid_size", "anchor", "dtype"), dict.fromkeys((c.grid_size, c.anchor, c.dtype) for c in TABLE)
)
def test_npr_and_its_gradient(grid_size, anchor, dtype, backend):
    for layout in ("contiguous", "channels_last"):
        x, *_ = Case(height=13, width=17, dtype=dtype, layout=layout).tensors(DEVICES[backend])
        x.requires_grad_(x.is_floating_point())
        out, eager = (npr_kernels.npr(x, grid_size, anchor, backend=b) for b in (backend, "eager"))
        exact = x.detach().double().requires_grad_()
        truth = npr_kernels.npr(exact, grid_size, anchor, backend="eager")
        assert_close(out, eager, truth)
        if x.requires_grad:
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
            (result,), (of_eager,) = (torch.autograd.grad(o, x, grad) for o in (out, eager))
            (of_truth,) = torch.autograd.grad(truth, exact, grad.double())
            assert_close(result, of_eager, of_truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("anchor", [0, 3, "mean", "max"])
def test_gradcheck(anchor, operator, backend):
    x, weight, bias = Case(dtype=torch.float64, height=4, width=6, anchor=anchor, out_channels=3).tensors(
        DEVICES[backend]
    )
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *tensors: operator(*tensors, anchor=anchor, backend=backend), inputs, fast_mode=False
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anchor", [0, "max"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("operator", OPERATORS)
def test_non_finite_pixels_spread_as_in_pytorch(operator, value, anchor, backend):
    """A pooling that compares carelessly drops NaN."""
    case = Case(height=24, width=32, anchor=anchor, out_channels=20)
    x, weight, bias = case.tensors(DEVICES[backend])
    x[1, 0, 9, 1] = value
    truth = operator(*double(x, weight, bias), backend="eager", **case.options)
    assert error(operator(x, weight, bias, backend=backend, **case.options), truth) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_nan_weight_makes_its_channel_nan(dtype, operator, backend):
    """Inside the image; at the padding it depends on the library whether zero times NaN is computed."""
    case = Case(height=24, width=32, out_channels=20, dtype=dtype)
    x, weight, bias = case.tensors(DEVICES[backend])
    weight[3, 0, 0, 1] = float("nan")
    out = operator(x, weight, bias, backend=backend, **case.options)
    assert out[:, 3, 1:-1, 1:-1].isnan().all()
    assert not out[:, :3].isnan().any() and not out[:, 4:].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_repeat_to_the_bit(backend):
    case = Case(batch=4, height=64, width=64, out_channels=64)
    first, second = (
        gradients(npr_kernels.npr_conv2d, case, backend, *case.tensors(DEVICES[backend])) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_float32_of_triton_is_exact_whatever_torch_says_of_tf32(dtype, operator, cuda):
    """As exact as the CPU's, which knows no TF32, and the same to the bit."""
    case = Case(dtype=dtype, height=24, width=64, out_channels=64)
    tensors, truth = case.tensors(), operator(*double(*case.tensors()), backend="eager", **case.options)
    results, before = [], torch.backends.cudnn.conv.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = precision
            results.append(operator(*case.tensors(cuda), backend="triton", **case.options).cpu())
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert_close(results[0], operator(*tensors, backend="eager", **case.options), truth)
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", FAST)
def test_a_batch_equals_its_images(backend):
    """Rows are shared out over threads through the whole batch; where a share begins must not matter."""
    case = Case(batch=5, height=38, width=20, dtype=torch.uint8, out_channels=64)
    x, weight, bias = case.tensors(DEVICES[backend])
    whole = npr_kernels.npr_stem(x, weight, bias, backend=backend, **case.options)
    single = [npr_kernels.npr_stem(image[None], weight, bias, backend=backend, **case.options) for image in x]
    assert torch.equal(whole, torch.cat(single))


def only_map(x, weight, bias, backend, **options):
    return npr_kernels.npr(x, backend=backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("function", [only_map, *OPERATORS, batch_norm_stem])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype, function, backend):
    """Of results and gradients; the sums of the threads are float64 and hence exact enough for float32.

    torch's own sum of a result does depend on it.
    """
    case = Case(batch=3, height=39, width=24, dtype=dtype, out_channels=20)
    x, weight, bias = case.tensors(DEVICES[backend])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7, 64):
            torch.set_num_threads(threads)
            tensors = [t.clone().requires_grad_(t.is_floating_point()) for t in (x, weight, bias)]
            y = function(*tensors, backend=backend, **case.options)
            if y.requires_grad:
                y.backward(y.detach())
            results.append([y.detach(), *(t.grad for t in tensors if t.grad is not None)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_the_table_reaches_what_it_should():
    assert {c.grid_size for c in TABLE} == {2, 3, 4}
    assert {c.dtype for c in TABLE} == set(IMAGE_DTYPES)
    assert any(c.batch == 0 for c in TABLE) and any(c.layout == "expanded" for c in TABLE)
