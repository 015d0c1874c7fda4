"""Kernels prove themselves before the automatic choice takes them: here those of the `cpu` backend, as a GPU's would.

With Triton's interpreter the `triton` backend serves CPU tensors: triton/test_interpreter.py has the real thing.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import npr_kernels
from npr_kernels import extension, reference
from npr_kernels.backends import cpu, cuda, proof, registry, triton
from npr_kernels.backends.base import Call, Convolution
from npr_kernels.testing import TABLE, Case, error

needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))
OPERATORS = ("npr", "npr_conv2d", "npr_stem", "npr_batch_norm_stem")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cpu, "SELF_TEST_SIZES", triton.SELF_TEST_SIZES)
    monkeypatch.setattr(proof, "_verdicts", {})
    monkeypatch.setattr(proof, "_logged", set())
    monkeypatch.setattr(registry, "_logged", set())
    monkeypatch.delenv("NPR_KERNELS_SELF_TEST", raising=False)


def call_of(case: Case, operator: str, device: str = "cpu", gradients: bool = True) -> Call:
    convolution, shape = case.convolution, (case.out_channels, case.channels, *case.kernel)
    if operator == "npr":
        convolution, shape = Convolution(grid_size=case.grid_size, anchor=case.anchor), None
    return Call(
        operator, torch.device(device), case.dtype, case.parameter_dtype, convolution, shape,
        channels_last=case.layout == "channels_last",
        image_gradient=gradients and case.dtype != torch.uint8, parameter_gradients=gradients,
    )  # fmt: skip


CASES = list(
    {
        (c.dtype, c.parameter_dtype, c.kernel, c.stride, c.padding, c.channels, c.anchor in ("mean", "max")): c
        for c in TABLE
        if c.layout in ("channels_last", "contiguous") and c.batch
    }.values()
)


@needs_extension
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_kernels_pass(case: Case):
    for operator in OPERATORS:
        for gradients in (True, False):
            assert proof._difference(cpu, call_of(case, operator, gradients=gradients)) is None, operator


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
@pytest.mark.parametrize(
    "case",
    [
        Case(dtype=torch.uint8, weight_dtype=torch.bfloat16, out_channels=64),
        Case(dtype=torch.uint8, weight_dtype=torch.bfloat16, out_channels=64, anchor=3, layout="contiguous"),
        Case(dtype=torch.uint8, weight_dtype=torch.float32, out_channels=64),
        Case(dtype=torch.float32, out_channels=64),
        Case(dtype=torch.float16, out_channels=64),
    ],
    ids=str,
)
def test_the_kernels_of_a_gpu_pass(case: Case, backend: str, operator: str, cuda):
    call = call_of(case, operator, "cuda:0")
    served_by = registry.get(backend)
    reason = served_by.unsupported_reason(call)
    if reason:
        pytest.skip(reason)
    assert proof._difference(served_by, call) is None
    assert proof.failure(served_by, call) is None and proof._verdicts == {(backend, call): None}


def off_by_a_percent(result: torch.Tensor) -> torch.Tensor:
    return result * 1.01


def one_row_is_nan(result: torch.Tensor) -> torch.Tensor:
    result[..., -1] = float("nan")
    return result


def raises(result: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")


def reversed_rows(result: torch.Tensor) -> torch.Tensor:
    return result.flip(-1)


WRONG = {
    "npr": lambda x: npr_kernels.npr(x),
    "npr_backward": lambda x: npr_kernels.npr(x),
    "npr_conv2d": lambda x: npr_kernels.npr_conv2d(x, WEIGHT),
    "npr_conv2d_grad_weight": lambda x: npr_kernels.npr_conv2d(x, WEIGHT),
    "npr_conv2d_grad_input": lambda x: npr_kernels.npr_conv2d(x, WEIGHT),
    "npr_stem": lambda x: npr_kernels.npr_stem(x.detach(), WEIGHT.detach()),
    "npr_stem_argmax": lambda x: npr_kernels.npr_stem(x.detach(), WEIGHT),
    "npr_stem_grad_weight": lambda x: npr_kernels.npr_stem(x.detach(), WEIGHT),
    "npr_moments": lambda x: npr_kernels.npr_batch_norm_stem(x.detach(), WEIGHT, None, None, None, None, None),
}
WEIGHT = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


@needs_extension
@pytest.mark.parametrize("wrong", [off_by_a_percent, one_row_is_nan, reversed_rows, raises])
@pytest.mark.parametrize("function", WRONG)
def test_a_wrong_kernel_is_logged_once_and_passed_over(function, wrong, monkeypatch, caplog):
    """The next backend serves, gradients included; asked for by name, the wrong one still answers or raises."""
    right = getattr(cpu, function)

    def kernel(*args):
        result = right(*args)
        return (wrong(result[0]), *result[1:]) if isinstance(result, tuple) else wrong(result)

    monkeypatch.setattr(cpu, function, kernel)
    x = torch.randn(2, 3, 24, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with npr_kernels.use_backend("eager"):
        expected = WRONG[function](x)
    with caplog.at_level(logging.WARNING, "npr_kernels"):
        for _ in range(2):
            found = WRONG[function](x)
            assert torch.equal(found, expected)
    assert not type(found.grad_fn).__name__.startswith("NPR")  # the gradient is eager's, too
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, messages
    assert messages[0].startswith("the cpu backend is not used for npr") and " on cpu: " in messages[0]
    assert ("no kernel image" if wrong is raises else function) in messages[0] and "\n" not in messages[0]
    assert messages[1].startswith("npr") and "runs on plain PyTorch" in messages[1]
    if function in OPERATORS:
        with npr_kernels.use_backend("cpu"):
            if wrong is raises:
                with pytest.raises(RuntimeError, match="no kernel image"):
                    WRONG[function](x)
            else:
                assert not error(WRONG[function](x), expected) < 1e-3


@needs_extension
@pytest.mark.parametrize(
    "broken",
    [
        lambda argmax: argmax.clamp(max=8),  # a position for values that are not positive
        lambda argmax: torch.where(argmax == 9, 9, (argmax + 1) % 9).to(torch.uint8),  # the neighbour's position
        lambda argmax: torch.full_like(argmax, 77),
    ],
)
def test_positions_of_maxima_are_checked(broken, monkeypatch):
    right = cpu.npr_stem_argmax
    monkeypatch.setattr(cpu, "npr_stem_argmax", lambda *args: (right(*args)[0], broken(right(*args)[1])))
    call = call_of(Case(out_channels=16), "npr_stem")
    assert proof.failure(cpu, call) is not None
    assert proof.failure(cpu, replace(call, image_gradient=False, parameter_gradients=False)) is None


@needs_extension
def test_a_verdict_is_found_once(monkeypatch):
    """For each operator, pair of dtypes, geometry and memory format, and again where gradients are wanted first."""
    tried = []
    difference = proof._difference
    monkeypatch.setattr(proof, "_difference", lambda backend, call: tried.append(call) or difference(backend, call))
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 3, 3, 3)
    for size in (16, 12, 8):  # a size is nothing new, nor is another scale
        npr_kernels.npr_conv2d(x[..., :size, :], weight, scale=size / 8)
    assert len(tried) == 1
    calls = [
        lambda: npr_kernels.npr_stem(x, weight),
        lambda: npr_kernels.npr_conv2d(x.contiguous(), weight),
        lambda: npr_kernels.npr_conv2d(x, weight, anchor=3),
        lambda: npr_kernels.npr_conv2d(x, weight[:, :, :1], padding=(0, 1)),
        lambda: npr_kernels.npr_conv2d(x.bfloat16(), weight.bfloat16()),
        lambda: npr_kernels.npr_conv2d(x, weight.requires_grad_()),
        lambda: npr_kernels.npr_conv2d(x.detach().clone().requires_grad_(), weight),
    ]
    for number, call in enumerate(calls, start=2):
        for _ in range(2):
            call()
        assert len(tried) == number
    npr_kernels.npr_stem(x.double(), weight.double(), backend="cpu")
    assert len(tried) == number  # explicit choices are not compared


@needs_extension
def test_threads_wait_for_one_check(monkeypatch):
    tried, entered = [], threading.Barrier(4)
    difference = proof._difference
    monkeypatch.setattr(proof, "_difference", lambda backend, call: tried.append(call) or difference(backend, call))
    monkeypatch.setattr(cpu, "npr_conv2d", lambda *args: torch.zeros(1))
    call = call_of(Case(), "npr_conv2d")

    def failure(_):
        entered.wait()
        return proof.failure(cpu, call)

    with ThreadPoolExecutor(4) as pool:
        reasons = set(pool.map(failure, range(4)))
    assert len(tried) == 1 and len(reasons) == 1 and None not in reasons


@needs_extension
def test_switched_off(monkeypatch):
    monkeypatch.setattr(cpu, "npr_conv2d", lambda *args: torch.zeros(1))
    x, weight, _ = Case().tensors()
    monkeypatch.setenv("NPR_KERNELS_SELF_TEST", "0")
    assert npr_kernels.npr_conv2d(x, weight).shape == (1,)
    monkeypatch.setenv("NPR_KERNELS_SELF_TEST", "1")
    assert npr_kernels.npr_conv2d(x, weight).shape == (2, 8, 6, 8)


@needs_extension
def test_nothing_is_tried_during_a_capture(monkeypatch):
    call = call_of(Case(), "npr_conv2d")
    monkeypatch.setattr(cpu, "npr_conv2d", lambda *args: torch.zeros(1))
    monkeypatch.setattr(proof, "_is_capturing", lambda device: True)
    assert proof.failure(cpu, call) is None and not proof._verdicts
    monkeypatch.setattr(proof, "_is_capturing", lambda device: False)
    assert proof.failure(cpu, call) is not None


def test_a_call_first_made_in_a_capture(cuda):
    """It is served, and checked when it comes again outside of the capture."""
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, device=cuda)
    weight = torch.randn(64, 3, 3, 3, device=cuda)
    expected = npr_kernels.npr_stem(x, weight)  # compiles
    proof._verdicts.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = npr_kernels.npr_stem(x, weight)
    graph.replay()
    assert torch.equal(found, expected) and not proof._verdicts
    npr_kernels.npr_stem(x, weight)
    assert list(proof._verdicts.values()) == [None]


@needs_extension
def test_a_full_memory_says_nothing_about_the_kernel(monkeypatch):
    right, calls = cpu.npr_conv2d, []

    def full_at_first(*args):
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(*args)

    monkeypatch.setattr(cpu, "npr_conv2d", full_at_first)
    call = call_of(Case(), "npr_conv2d", gradients=False)
    assert proof.failure(cpu, call) is None and not proof._verdicts
    assert proof.failure(cpu, call) is None and list(proof._verdicts.values()) == [None]


@needs_extension
@pytest.mark.parametrize(
    "surroundings",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),  # where tensors are made
        lambda: torch.autograd.graph.save_on_cpu(),
    ],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_surroundings_do_not_matter(operator, surroundings):
    """The check sees nothing of the caller's modes, and leaves the random numbers alone."""
    call, state = call_of(Case(out_channels=16), operator), torch.get_rng_state()
    with surroundings():
        assert proof.failure(cpu, call) is None
        assert len(proof._verdicts) == 1
    assert torch.equal(state, torch.get_rng_state())


@needs_extension
@pytest.mark.parametrize("wrong", [False, True])
def test_a_compiled_graph_has_what_was_proved(wrong, monkeypatch):
    """The check runs while the graph is traced, and is no part of it."""
    if wrong:
        monkeypatch.setattr(cpu, "npr_stem_argmax", lambda *args: 1 / 0)
    torch._dynamo.reset()
    stem = npr_kernels.NPRStem(3, 16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: stem(x), fullgraph=True, dynamic=True, backend=backend)
    x = torch.randint(0, 256, (2, 3, 12, 16), dtype=torch.uint8)
    assert error(compiled(x), stem(x)) < 1e-5
    assert len(graphs) == 1 and proof._verdicts
    assert ("autograd_function_apply" in graphs[0].code or "NPR" in graphs[0].code) != wrong
    chosen = {name: reason for (name, call), reason in proof._verdicts.items()}
    assert (chosen["cpu"] is not None) == wrong


@needs_extension
def test_which_backend_says_why(monkeypatch):
    monkeypatch.setattr(cpu, "npr_conv2d", lambda *args: torch.zeros(2, 8, 6, 8))
    x, weight, _ = Case().tensors()
    explanation = npr_kernels.which_backend(x, weight)
    assert explanation.chosen == "eager"
    assert "a small case" in explanation.reasons["cpu"]


def test_the_case_is_that_of_the_call():
    for case in CASES:
        small, convolution = proof._small_case(call_of(case, "npr_conv2d"), triton.SELF_TEST_SIZES[0])
        assert convolution == case.convolution
        assert (small.dtype, small.parameter_dtype, small.kernel) == (case.dtype, case.parameter_dtype, case.kernel)
        x, weight, bias = small.tensors()
        assert reference.npr_conv2d(x, weight, bias, *convolution).numel() > 0


def test_the_cases_take_every_way_through_the_cuda_kernels():
    """Strips of 32 pooled columns, several strips, more rows than any GPU has blocks; pixels that are not copied."""
    call = Call("npr_stem", torch.device("cuda"), torch.uint8, torch.bfloat16, proof.NETWORK, proof.NETWORK_SHAPE)
    cases = [proof._small_case(call, size)[0] for size in cuda.SELF_TEST_SIZES]
    pooled = [(case.batch * case.height // 4, case.width // 4) for case in cases]
    assert any(columns <= 64 and columns % 32 == 0 for _, columns in pooled)
    assert any(columns > 64 for _, columns in pooled)
    assert any(rows > 1000 for rows, _ in pooled)
    assert all(3 * case.width % 16 == 0 for case in cases)


def test_another_scale_is_not_another_case():
    calls = [
        Call("npr_stem", torch.device("cpu"), torch.uint8, torch.float32, proof.NETWORK._replace(scale=(value,)))
        for value in (0.1, 0.2)
    ]
    assert proof._without_scale(calls[0]) == proof._without_scale(calls[1])
