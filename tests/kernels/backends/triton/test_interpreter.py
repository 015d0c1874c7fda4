"""The Triton kernels without a GPU: every kind of case under Triton's interpreter, against float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import npr_kernels
from npr_kernels import reference
from npr_kernels.backends import proof, registry
from npr_kernels.backends import triton as triton_backend
from npr_kernels.backends.base import Convolution
from npr_kernels.testing import GRIDS, IMAGE_DTYPES, LAYOUTS, TABLE, Case, assert_close, error
from tests.kernels.backends.triton.interpreter import INTERPRETED, interpreted, run_under_interpreter
from tests.kernels.parity import double, gradients

triton = pytest.importorskip("triton", reason="Triton is not installed")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    pytest.skip("the interpreter of older versions does not run on NumPy 2.4", allow_module_level=True)

LOW = {"dtype": torch.uint8, "weight_dtype": torch.bfloat16}


def _subset() -> list[Case]:
    """Every value of every field of the table's cases, several in one case: a call takes the interpreter long."""
    corners = [(g, a) for g, a in GRIDS if a in (0, 5, "mean", "max")]
    geometries = sorted({(c.kernel, c.stride, c.padding) for c in TABLE if c.dtype == torch.float32}, key=str)
    cycles = map(itertools.cycle, (IMAGE_DTYPES, LAYOUTS, (3, 1, 2, 3, 4, 7), geometries))
    cases = [
        Case(g, a, dtype=d, layout=layout, channels=c, kernel=k, stride=s, padding=p, height=9, width=13)
        for (g, a), d, layout, c, (k, s, p) in zip(corners, *cycles, strict=False)
    ]
    dtypes = itertools.cycle(IMAGE_DTYPES[1:])
    sizes = {"sliced": (2, 2), "permuted": (3, 2), "offset": (5, 5)}  # pixels of these are read singly in any size
    for layout in LAYOUTS:
        height, width = sizes.get(layout, (12, 16))
        cases.append(Case(dtype=torch.uint8, weight_dtype=next(dtypes), layout=layout, height=height, width=width))
    cases += [Case(**LOW, out_channels=130, bias=False), Case(**LOW, out_channels=1, bias=False, height=33, width=66)]
    return [*(replace(case, batch=1) for case in cases), Case(), Case(batch=0)]


SUBSET = _subset()


@pytest.mark.slow
@pytest.mark.xdist_group("interpreter")
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_under_the_interpreter():
    run_under_interpreter(__file__)


def test_the_subset_reaches_what_the_table_does():
    for field in ("grid_size", "kernel", "stride", "padding", "dtype", "layout", "channels", "parameter_dtype"):
        assert {getattr(c, field) for c in SUBSET} == {getattr(c, field) for c in TABLE}, field


@interpreted
@pytest.mark.parametrize("case", SUBSET, ids=str)
def test_forward(case: Case):
    x, weight, bias = case.tensors()
    for operator in (npr_kernels.npr_conv2d, npr_kernels.npr_stem):
        truth = operator(*double(x, weight, bias), backend="eager", **case.options)
        eager = operator(x, weight, bias, backend="eager", **case.options)
        assert_close(operator(x, weight, bias, backend="triton", **case.options), eager, truth)


@interpreted
@pytest.mark.parametrize("case", SUBSET, ids=str)
def test_convolution_gradients(case: Case):
    results = [
        gradients(npr_kernels.npr_conv2d, case, backend, *tensors)
        for backend, tensors in (
            ("triton", case.tensors()),
            ("eager", case.tensors()),
            ("eager", double(*case.tensors())),
        )
    ]
    for result, eager, truth in zip(*results, strict=True):
        assert_close(result, eager, truth)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "grid_size", "anchor"),
    zip(IMAGE_DTYPES, (2, 3, 2, 4, 3), (0, "max", "mean", 7, "mean"), strict=True),
)
def test_npr_and_its_gradient(grid_size, anchor, dtype):
    for layout in ("contiguous", "channels_last"):
        x, *_ = Case(height=9, width=13, dtype=dtype, layout=layout).tensors()
        x.requires_grad_(x.is_floating_point())
        out, eager = (npr_kernels.npr(x, grid_size, anchor, backend=b) for b in ("triton", "eager"))
        exact = x.detach().double().requires_grad_()
        truth = npr_kernels.npr(exact, grid_size, anchor, backend="eager")
        assert_close(out, eager, truth)
        if x.requires_grad:
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            (result,), (of_eager,) = (torch.autograd.grad(o, x, grad) for o in (out, eager))
            (of_truth,) = torch.autograd.grad(truth, exact, grad.double())
            assert_close(result, of_eager, of_truth)


# ---- what the training stem is composed of

STEM_CASES = [
    Case(dtype=torch.uint8),
    Case(height=10, width=14, layout="contiguous", out_channels=20, batch=1),
    Case(dtype=torch.float64, height=9, width=12, batch=1),
    Case(**LOW, height=17, width=34, batch=1),
    Case(dtype=torch.bfloat16, height=8, width=12, batch=1),
    Case(dtype=torch.float16, layout="sliced", height=8, width=12, batch=1),
    Case(dtype=torch.uint8, anchor="mean", height=8, width=12, batch=1),
    Case(
        dtype=torch.float64, grid_size=3, anchor="max", height=9, channels=1,
        kernel=(5, 3), stride=(2, 1), padding=(0, 2), batch=1,
    ),
    Case(dtype=torch.uint8, channels=2, anchor=3, height=8, width=12, batch=1),
    Case(dtype=torch.float64, batch=0),
]  # fmt: skip


def patches(case: Case, x) -> torch.Tensor:
    """(N, K, positions) of scale * npr(x) in float64."""
    stride, padding, grid_size, anchor, scale = case.convolution
    factors = torch.tensor(scale, dtype=torch.float64).view(1, -1, 1, 1)
    return F.unfold(reference.npr(x.double(), grid_size, anchor) * factors, case.kernel, 1, padding, stride)


@interpreted
@pytest.mark.parametrize("case", STEM_CASES, ids=str)
def test_moments(case: Case):
    x, *_ = case.tensors()
    first, second = registry.get("triton").npr_moments(x, case.kernel, case.convolution)
    if case.batch == 0:
        assert not first.any() and not second.any()
        return
    truth = patches(case, x)
    limit = (
        1e-13 if case.dtype == torch.float64 else 1e-12 if case.dtype == torch.uint8 and case.anchor != "mean" else 3e-7
    )
    assert error(first, truth.sum((0, 2))) < limit * 10
    assert error(second, torch.einsum("nkp,nlp->kl", truth, truth)) < limit
    if case.batch > 1:  # sums of several programs
        again = registry.get("triton").npr_moments(x, case.kernel, case.convolution)
        assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def window_places(y: torch.Tensor) -> torch.Tensor:
    """(N, O, 9, pooled positions) of y padded with -inf for the 3x3/2 pooling."""
    n, o = y.shape[:2]
    return F.unfold(F.pad(y, (1, 1, 1, 1), value=float("-inf")), 3, stride=2).view(n, o, 9, -1)


@interpreted
@pytest.mark.parametrize("case", [*STEM_CASES, Case(dtype=torch.uint8, out_channels=33, bias=False)], ids=str)
def test_stem_argmax(case: Case):
    x, weight, bias = case.tensors()
    backend = registry.get("triton")
    pooled, argmax = backend.npr_stem_argmax(x, weight, bias, case.convolution)
    assert torch.equal(pooled, backend.npr_stem(x, weight, bias, case.convolution))
    assert argmax.shape == pooled.shape and argmax.dtype == torch.uint8
    assert argmax.is_contiguous(memory_format=torch.channels_last)
    if case.batch == 0:
        return
    windows = window_places(reference.npr_conv2d(*double(x, weight, bias), *case.convolution))
    best = windows.amax(2).view(pooled.shape)
    slack = best.abs().max() * (
        1e-6 if pooled.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(pooled.dtype).eps
    )
    assert torch.equal(argmax == 9, ~(pooled > 0))
    chosen = windows.gather(2, argmax.flatten(2).long().clamp_max(8)[:, :, None]).view(pooled.shape)
    assert ((chosen >= best - slack) | (argmax == 9)).all()
    assert ((best <= slack) | (argmax < 9)).all()


@interpreted
def test_argmax_takes_the_first_among_equals():
    """Of small integers every product and sum is exact, so ties are ties."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (2, 3, 16, 20), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-1, 2, (8, 3, 3, 3), generator=generator).float()
    pooled, argmax = registry.get("triton").npr_stem_argmax(x, weight, None, Convolution((2, 2), (1, 1)))
    y = reference.npr_conv2d(x.double(), weight.double(), None, (2, 2), (1, 1), 2, 0, (1.0,))
    places = window_places(y).argmax(2).view(pooled.shape)  # the first of equals
    assert torch.equal(argmax.long(), torch.where(pooled > 0, places, 9))


@interpreted
@pytest.mark.parametrize(("bias", "scale"), [(-1e-8, 0.0), (0.0, 1e-12), (-1e-8, 1e-12)])
def test_what_fp16_rounds_to_zero_is_not_positive(bias, scale):
    """A bias of -1e-8 becomes -0.0, whose bits are the largest if taken as unsigned; 1e-10 is positive in float32."""
    x, weight, _ = Case(batch=1, dtype=torch.uint8, weight_dtype=torch.float16).tensors()
    bias = torch.full((8,), bias).half()
    assert not bias.any()
    options = Convolution((2, 2), (1, 1), scale=(scale or 1.0,))
    weight = weight if scale else torch.zeros_like(weight)
    pooled, argmax = registry.get("triton").npr_stem_argmax(x, weight, bias, options)
    assert not pooled.any() and not pooled.signbit().any()
    assert (argmax == 9).all()


@interpreted
@pytest.mark.parametrize("case", STEM_CASES, ids=str)
def test_stem_grad_weight(case: Case):
    x, weight, bias = case.tensors()
    backend = registry.get("triton")
    pooled, argmax = backend.npr_stem_argmax(x, weight, bias, case.convolution)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(pooled.dtype)
    products, sums = backend.npr_stem_grad_weight(grad, argmax, x, case.kernel, case.convolution)
    expected = torch.float64 if torch.float64 in (grad.dtype, x.dtype) else torch.float32
    assert products.dtype == sums.dtype == expected and products.shape == weight.shape
    if case.batch == 0:
        assert not products.any() and not sums.any()
        return
    y = reference.npr_conv2d(*double(x, weight, bias), *case.convolution)
    windows = torch.zeros(*y.shape[:2], 10, pooled[0, 0].numel(), dtype=torch.float64)
    windows.scatter_(2, argmax.flatten(2).long()[:, :, None], grad.double().flatten(2)[:, :, None])
    n, _, height, width = y.shape
    dz = F.fold(windows[:, :, :9].reshape(n, -1, windows.shape[3]), (height + 2, width + 2), 3, stride=2)
    dz = dz[:, :, 1 : height + 1, 1 : width + 1]
    truth = torch.einsum("nop,nkp->ok", dz.flatten(2), patches(case, x)).view_as(weight)
    limit = {torch.float64: 1e-13, torch.float32: 1e-6}.get(grad.dtype, 2 * torch.finfo(grad.dtype).eps)
    assert error(products, truth) < limit
    assert error(sums, dz.sum((0, 2, 3))) < limit


@interpreted
@pytest.mark.parametrize(("anchor", "value"), [(0, float("nan")), ("max", float("inf")), (0, float("-inf"))])
def test_non_finite_pixels_spread_as_in_pytorch(anchor, value):
    case = Case(batch=1, anchor=anchor, out_channels=20)
    x, weight, bias = case.tensors()
    x[0, 0, 9, 1] = value
    for operator in (npr_kernels.npr_conv2d, npr_kernels.npr_stem):
        truth = operator(*double(x, weight, bias), backend="eager", **case.options)
        assert error(operator(x, weight, bias, backend="triton", **case.options), truth) < 1e-5


@interpreted
def test_opcheck():
    """Schemas, fakes, and that nothing is an alias or changed in place."""
    case = Case(batch=1, height=4, width=4, out_channels=2)
    x, weight, bias = case.tensors()
    backend = registry.get("triton")
    operators = backend._operators()
    arguments = case.convolution.coded()

    def check(operator, *args):
        torch.library.opcheck(operator.default, args, test_utils=("test_schema", "test_faketensor"))

    for channels_last in (False, True):
        check(operators.npr_conv2d, x, weight, bias, *arguments, channels_last)
    check(operators.npr_stem, x, weight, None, *arguments)
    check(operators.npr_stem_argmax, x, weight, bias, *arguments)
    check(operators.npr, x, case.grid_size, arguments[3], True)
    check(operators.npr_moments, x, case.kernel, *arguments)
    y = operators.npr_conv2d(x, weight, bias, *arguments, False)
    check(operators.npr_conv2d_grad_weight, y, x, case.kernel, *arguments)
    check(operators.npr_conv2d_grad_input, y, x, weight, *arguments, True)
    pooled, argmax = operators.npr_stem_argmax(x, weight, bias, *arguments)
    check(operators.npr_stem_grad_weight, pooled, argmax, x, case.kernel, *arguments)
    map_ = operators.npr(x, case.grid_size, arguments[3], False)
    check(operators.npr_backward, map_, x, case.grid_size, arguments[3], False)


@interpreted
def test_compile_and_export():
    """One graph, forward and backward; the exported program runs for another size."""
    network = npr_kernels.NPRStem(3, 8, backend="triton")
    x = torch.randint(0, 256, (2, 3, 12, 16), dtype=torch.uint8)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    gradient = []
    for module in (network, compiled):
        network.zero_grad()
        module(x).square().sum().backward()
        gradient.append(network.conv.weight.grad.clone())
    assert error(*gradient) < 1e-5
    network.eval()
    sizes = {0: torch.export.Dim("batch"), 2: 2 * torch.export.Dim("rows", min=4)}
    program = torch.export.export(network, (x,), dynamic_shapes=(sizes,)).module()
    other = torch.randint(0, 256, (3, 3, 20, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert error(program(other), network(other)) < 1e-5


@interpreted
def test_the_interpreter_serves_cpu_tensors_and_says_so():
    assert npr_kernels.available_backends()["triton"] is None
    call = registry.Call("npr", torch.device("cuda"), torch.float32, torch.float32, Convolution())
    assert "CPU tensors while TRITON_INTERPRET=1" in registry.get("triton").unsupported_reason(call)


@interpreted
@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.bfloat16), (torch.float32, torch.float32)])
def test_kernels_prove_themselves_before_the_automatic_choice(dtypes, monkeypatch, caplog):
    """As on a GPU: the first automatic use of each operator tries it and its gradients on a small case."""
    monkeypatch.setattr(proof, "_verdicts", {})
    monkeypatch.setattr(registry.get("triton"), "SELF_TEST_SIZES", ((4, 20),))  # small enough for the interpreter
    x, weight, bias = Case(dtype=dtypes[0], weight_dtype=dtypes[1], batch=1).tensors()
    tensors = [t.requires_grad_(t.is_floating_point()) for t in (x, weight, bias)]
    out = npr_kernels.npr_conv2d(*tensors).sum() + npr_kernels.npr(x).sum() + npr_kernels.npr_stem(*tensors).sum()
    (out + npr_kernels.npr_batch_norm_stem(*tensors, None, None, None, None).sum()).backward()
    assert all(t.grad is not None for t in tensors if t.requires_grad)
    operators = {call.operator for name, call in proof._verdicts if name == "triton"}
    assert operators == {"npr", "npr_conv2d", "npr_stem", "npr_batch_norm_stem"}
    assert set(proof._verdicts.values()) == {None} and not caplog.records


@interpreted
def test_a_wrong_triton_kernel_is_passed_over(monkeypatch, caplog):
    monkeypatch.setattr(proof, "_verdicts", {})
    monkeypatch.setattr(proof, "_logged", set())
    right = triton_backend.npr_conv2d
    monkeypatch.setattr(triton_backend, "npr_conv2d", lambda *args: right(*args) * 1.001)
    x, weight, bias = Case(batch=1).tensors()
    for _ in range(2):
        explanation = npr_kernels.which_backend(x, weight)
        assert explanation.chosen in ("cpu", "eager") and "npr_conv2d has error" in explanation.reasons["triton"]
        assert_close(
            npr_kernels.npr_conv2d(x, weight, bias),
            npr_kernels.npr_conv2d(x, weight, bias, backend="eager"),
            npr_kernels.npr_conv2d(*double(x, weight, bias), backend="eager"),
        )
    (message,) = (record.getMessage() for record in caplog.records if "triton backend" in record.getMessage())
    assert message.startswith(
        "the triton backend is not used for npr_conv2d of float32 images and float32 weights on cpu"
    )
