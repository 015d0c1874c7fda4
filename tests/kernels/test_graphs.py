"""torch.compile, torch.export, opcheck and autocast: the operators as parts of graphs."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import npr_kernels
from npr_kernels import extension
from npr_kernels.backends import cpu
from npr_kernels.backends.base import anchor_code
from npr_kernels.testing import Case, error

needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))
BACKENDS = [pytest.param("cpu", marks=needs_extension), "eager"]
CASES = [
    Case(),
    Case(dtype=torch.uint8),
    Case(anchor="max", layout="contiguous"),
    Case(dtype=torch.bfloat16, height=15),
]
ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
FOR_ANY_CASE = ("test_schema", "test_faketensor")  # the others are slow, and take the same way for any values


@needs_extension
@pytest.mark.parametrize(
    ("case", "tests"),
    [
        (CASES[1], ALL),
        (CASES[2], ALL),
        (CASES[3], FOR_ANY_CASE),
        (Case(batch=0), FOR_ANY_CASE),
        (Case(dtype=torch.float64, grid_size=3, anchor="mean"), FOR_ANY_CASE),
    ],
    ids=str,
)
def test_opcheck(case: Case, tests: tuple[str, ...]):
    opcheck = functools.partial(torch.library.opcheck, test_utils=tests)
    x, weight, bias = case.tensors()
    operators = torch.ops.npr_kernels
    cells = case.grid_size, anchor_code(case.anchor)
    convolution = ((2, 2), (1, 1), *cells, (0.5,))
    weight, bias, dtype = cpu._computed(weight), cpu._computed(bias), case.parameter_dtype
    for channels_last in (False, True):
        opcheck(operators.npr_conv2d, (x, weight, bias, *convolution, dtype, channels_last))
    opcheck(operators.npr_stem, (x, weight, None, *convolution, dtype))
    pooled, argmax = operators.npr_stem_argmax(x, weight, None, *convolution, dtype)
    opcheck(operators.npr_stem_argmax, (x, weight, None, *convolution, dtype))
    opcheck(operators.npr_stem_grad_weight, (pooled, argmax, x, (3, 3), *convolution))
    opcheck(operators.npr_moments, (x, (3, 3), *convolution))
    opcheck(operators.npr, (x, *cells))
    y = operators.npr_conv2d(x, weight, bias, *convolution, dtype, False)
    opcheck(operators.npr_conv2d_grad_weight, (y, x, (3, 3), *convolution))
    if case.dtype != torch.uint8:
        opcheck(operators.npr_conv2d_grad_input, (y, x, weight, *convolution))
        npr = operators.npr(x, *cells)
        opcheck(operators.npr_backward, (npr, x, *cells))


class Network(nn.Module):
    """A convolution layer, then the operators as functions, with something of torch's between them."""

    def __init__(self, case: Case, backend: str | None) -> None:
        super().__init__()
        self.conv = npr_kernels.NPRConv2d(
            3, 8, grid_size=case.grid_size, anchor=case.anchor, backend=backend, dtype=case.parameter_dtype
        )
        self.stem = npr_kernels.NPRStem(
            3, 8, grid_size=case.grid_size, anchor=case.anchor, backend=backend, dtype=case.parameter_dtype
        )

    def forward(self, x):
        return self.conv(x).sigmoid().mean((2, 3)) + self.stem(x).mean((2, 3))


@pytest.mark.parametrize(
    ("backend", "case", "dynamic"),
    [
        *(pytest.param("cpu", case, dynamic, marks=needs_extension)
          for case, dynamic in zip(CASES[1:], (True, False, False), strict=True)),
        ("eager", CASES[0], True),
    ],
    ids=str,
)  # fmt: skip
def test_compile_whole_graph(backend: str, case: Case, dynamic: bool):
    """One graph, forward and backward, for the size it was compiled for and, if sizes are dynamic, another one."""
    torch._dynamo.reset()
    network = Network(case, backend)
    state = copy.deepcopy(network.state_dict())
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for height in (case.height, case.height + 6) if dynamic else (case.height,):
        x, *_ = Case(dtype=case.dtype, layout=case.layout, height=height).tensors()
        results = []
        for module in (network, compiled):
            network.load_state_dict(state)  # the batch norm's statistics too
            network.zero_grad()
            network.train()
            module(x).square().sum().backward()
            network.eval()
            with torch.no_grad():
                results.append([module(x), *(p.grad.clone() for p in network.parameters())])
        for expected, found in zip(*results, strict=True):
            assert error(found, expected) < (0.05 if case.dtype == torch.bfloat16 else 1e-5)


@pytest.mark.slow
@needs_extension
@pytest.mark.xdist_group("inductor")
def test_compile_with_inductor():
    """The real compiler: strides of inputs and outputs must be what the operators promised."""
    torch._dynamo.reset()
    network = nn.Sequential(npr_kernels.NPRStem(3, 16), nn.Conv2d(16, 8, 3), nn.ReLU()).eval()
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        for layout in ("contiguous", "channels_last"):
            x, *_ = Case(height=32, width=32, layout=layout).tensors()
            assert error(compiled(x), network(x)) < 1e-5


@needs_extension
@pytest.mark.xdist_group("inductor")
def test_compile_training_with_inductor():
    """A step with a cumulative average, whose count must not break the graph."""
    torch._dynamo.reset()
    stem = npr_kernels.NPRStem(3, 16, bias=True, momentum=None)
    other = copy.deepcopy(stem)
    compiled = torch.compile(other, fullgraph=True)
    for number in range(2):
        x = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(number))
        outs = stem(x), compiled(x)
        for out in outs:
            (out * torch.arange(out.shape[3])).sum().backward()
        assert error(*outs[::-1]) < 1e-5
    for expected, found in zip(stem.parameters(), other.parameters(), strict=True):
        assert error(found.grad, expected.grad) < 1e-4
    for expected, found in zip(stem.buffers(), other.buffers(), strict=True):
        assert error(found, expected) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_export_with_dynamic_batch_and_size(backend: str, tmp_path):
    network = npr_kernels.NPRStem(3, 8, backend=backend).eval()
    x = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    sizes = {
        0: torch.export.Dim("batch"),
        2: 2 * torch.export.Dim("rows", min=4),
        3: 2 * torch.export.Dim("columns", min=4),
    }
    program = torch.export.export(network, (x,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "stem.pt2")
    loaded = torch.export.load(tmp_path / "stem.pt2").module()
    other = torch.randint(0, 256, (5, 3, 64, 20), dtype=torch.uint8)
    with torch.no_grad():
        assert error(loaded(other), network(other)) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.uint8])
def test_autocast(image_dtype, dtype, backend):
    """As conv2d: parameters stay float32, the result and the computation are in the autocast dtype."""
    x, *_ = Case(dtype=image_dtype).tensors()
    network = npr_kernels.NPRConv2d(3, 8, bias=True, backend=backend)
    with torch.autocast("cpu", dtype):
        y = network(x)
    assert y.dtype == dtype and network.weight.dtype == torch.float32
    y.float().sum().backward()
    assert network.weight.grad.dtype == torch.float32
    assert error(y, network(x)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_float64(backend):
    x, weight, _ = Case(dtype=torch.float64).tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert npr_kernels.npr_conv2d(x, weight, backend=backend).dtype == torch.float64
