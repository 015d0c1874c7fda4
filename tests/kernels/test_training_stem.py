"""The training stem against float64 layers: results, running statistics, gradients, and what is kept for backward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

import npr_kernels
from npr_kernels.backends import registry
from npr_kernels.backends.base import Convolution
from npr_kernels.distributed import SyncBatchNorm
from npr_kernels.testing import TABLE, Case, assert_close, error, pool_at
from tests.kernels.parity import BACKENDS as ALL_BACKENDS
from tests.kernels.parity import DEVICES, double

# On a GPU the training step is checked by test_cuda.py, and by the parity gate of benchmarks.ops.
BACKENDS = [backend for backend in ALL_BACKENDS if DEVICES[backend.values[0]] == "cpu"]
FAST = [backend for backend in BACKENDS if backend.values[0] != "eager"]


def positions(case: Case) -> int:
    """Values that each channel's statistics are of."""
    x, weight, _ = case.tensors()
    height, width = case.convolution.output_size(x, weight.shape[2:])
    return case.batch * height * width


MOMENTUM, EPS = 0.1, 1e-5
GRADIENT_DTYPE = torch.bfloat16  # the gradient of the result is rounded to it, so as to be the same in every dtype
# Two values of a channel are normalised to -1 and 1 whatever they were: what is left to compare is rounding.
CASES = [case for case in TABLE if case.batch == 0 or positions(case) > 2]


def batch_norm_tensors(case: Case) -> list[Tensor]:
    """gamma, beta, running mean and variance; a gamma of either sign, and one of zero with a negative beta."""
    generator = torch.Generator().manual_seed(2)
    gamma, beta, mean = torch.randn(3, case.out_channels, generator=generator, dtype=torch.float64)
    gamma[1:2], beta[1:2] = 0, -1
    return [tensor.to(case.parameter_dtype) for tensor in (gamma, beta, mean, mean.exp())]


def fused(case: Case, backend: str, x, weight, bias, gamma, beta, mean, var) -> Tensor:
    return npr_kernels.npr_batch_norm_stem(
        x, weight, bias, gamma, beta, mean, var, momentum=MOMENTUM, eps=EPS, backend=backend, **case.options
    )


def layers(case: Case, pool, x, weight, bias, gamma, beta, mean, var) -> Tensor:
    y = npr_kernels.npr_conv2d(x, weight, bias, backend="eager", **case.options)
    return pool(F.batch_norm(y, mean, var, gamma, beta, True, MOMENTUM, EPS))


def relu_and_pool(z: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(z), 3, 2, 1)


INPUTS = ("x", "weight", "bias", "gamma", "beta")


def step(function, tensors: list) -> tuple[list[Tensor], dict[str, Tensor], Tensor | None]:
    """One training step: [result, running statistics], gradients, and the argmax if one was saved."""
    tensors = [None if t is None else t.detach().clone() for t in tensors]
    inputs = {n: t for n, t in zip(INPUTS, tensors[:5], strict=True) if t is not None and t.is_floating_point()}
    for tensor in inputs.values():
        tensor.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = function(*tensors)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(out, list(inputs.values()), grad.to(GRADIENT_DTYPE).to(out.dtype))
    argmax = next((t for t in saved if t.dtype == torch.uint8 and t.shape == out.shape), None)
    return [out, *tensors[5:]], dict(zip(inputs, gradients, strict=True)), argmax


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(case: Case, backend: str):
    """Gradients follow the choice of maxima that was made, since among nearly equal values it depends on rounding."""
    tensors = [*case.tensors(), *batch_norm_tensors(case)]
    results, gradients, argmax = step(lambda *t: fused(case, backend, *t), tensors)
    assert argmax is not None
    of_layers = [step(lambda *t: layers(case, relu_and_pool, *t), t)[0] for t in (tensors, double(*tensors))]
    for compared in zip(results, *of_layers, strict=True):
        assert_close(*compared)
    pool = pool_at(argmax)
    _, of_eager, _ = step(lambda *t: layers(case, pool, *t), tensors)
    _, of_truth, _ = step(lambda *t: layers(case, pool, *t), double(*tensors))
    for name, gradient in gradients.items():
        if name == "bias":  # it cancels; elsewhere rounding leaves something
            assert not gradient.any()
        else:
            assert_close(gradient, of_eager[name], of_truth[name])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("dtype", "weight_dtype"), [
    (torch.uint8, torch.float32), (torch.uint8, torch.bfloat16), (torch.float32, torch.float32),
    (torch.float64, torch.float64), (torch.float16, torch.float16),
])  # fmt: skip
@pytest.mark.parametrize("size", [(2, 2), (5, 9), (12, 16), (33, 30)])
def test_argmax_is_that_of_max_pool(size, dtype, weight_dtype, backend):
    """Numbers so small and round that every sum is exact: ties galore, windows without a positive value."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 3, (2, 3, *size), generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-1, 2, (20, 3, 3, 3), generator=generator).to(weight_dtype)
    bias = torch.randint(-4, 3, (20,), generator=generator).to(weight_dtype)
    pooled, argmax = registry.get(backend).npr_stem_argmax(x, weight, bias, Convolution((2, 2), (1, 1)))
    y = npr_kernels.npr_conv2d(*double(x, weight, bias), scale=1.0, backend="eager")
    largest, index = F.max_pool2d(y, 3, 2, 1, return_indices=True)
    row, column = (2 * torch.arange(n) - 1 for n in argmax.shape[2:])
    expected = (index // y.shape[3] - row[:, None]) * 3 + index % y.shape[3] - column
    assert torch.equal(argmax.long(), expected.where(largest > 0, 9))
    assert torch.equal(pooled.double(), largest.relu())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_passes_where_nothing_is_positive(backend):
    case = Case()
    x, weight, bias, gamma, beta, mean, var = [*case.tensors(), *batch_norm_tensors(case)]
    tensors = [x, weight, bias, gamma, torch.full_like(beta, -100), mean, var]
    (out, *_), gradients, _ = step(lambda *t: fused(case, backend, *t), tensors)
    assert not out.any() and not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("backend", FAST)
def test_flat_images(backend):
    """Nothing varies: the result is beta, and the variance does not become negative by rounding."""
    case = Case(padding=0, anchor="max", bias=False)
    _, *rest = [*case.tensors(), *batch_norm_tensors(case)]
    x = torch.full((2, 3, 12, 16), 1e4)
    x[:, :, ::2] += 1.7  # the same in every cell
    (out, _, var), gradients, _ = step(lambda *t: fused(case, backend, *t), [x, *rest])
    assert error(out, rest[3].relu().view(1, -1, 1, 1).expand_as(out)) < 1e-3
    assert (var >= 0).all() and all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float32])
def test_autocast(image_dtype, dtype, backend):
    """Parameters, statistics and gradients stay float32; the result is no worse than that of layers in the dtype."""
    case = Case(dtype=image_dtype, batch=4, height=34, width=40, out_channels=64)
    tensors = [*case.tensors(), *batch_norm_tensors(case)]
    with torch.autocast("cpu", dtype):
        results, gradients, argmax = step(lambda *t: fused(case, backend, *t), tensors)
        eager, _, _ = step(lambda *t: layers(case, relu_and_pool, *t), tensors)
    truth, _, _ = step(lambda *t: layers(case, relu_and_pool, *t), double(*tensors))
    assert results[0].dtype == dtype and all(t.dtype == torch.float32 for t in [*results[1:], *gradients.values()])
    for compared in zip(results, eager, truth, strict=True):
        assert_close(*compared)
    if backend == "eager":
        return
    pool = pool_at(argmax)
    with torch.autocast("cpu", dtype):
        _, of_eager, _ = step(lambda *t: layers(case, pool, *t), tensors)
    _, of_truth, _ = step(lambda *t: layers(case, pool, *t), double(*tensors))
    for name in gradients.keys() - {"bias"}:
        assert_close(gradients[name], of_eager[name], of_truth[name])


@pytest.mark.parametrize("backend", FAST)
def test_autocast_takes_differences_before_rounding(backend):
    """Of a bright, smooth float32 image nothing would be left otherwise."""
    x = (1000 + torch.rand(2, 3, 32, 32)).contiguous(memory_format=torch.channels_last)
    stem = npr_kernels.NPRStem(3, 16, backend=backend)
    expected = copy.deepcopy(stem).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert error(stem(x), expected) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anchor", [0, 3, "mean", "max"])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training, anchor, backend):
    case = Case(dtype=torch.float64, height=4, width=6, anchor=anchor, out_channels=3)
    *inputs, mean, var = [*case.tensors(), *batch_norm_tensors(case)]

    def stem(*tensors):
        return npr_kernels.npr_batch_norm_stem(
            *tensors, mean.clone(), var.clone(), training=training, anchor=anchor, backend=backend
        )

    assert torch.autograd.gradcheck(stem, [t.requires_grad_() for t in inputs], fast_mode=False)


def modules_of(backend: str | None, dtype=torch.float64, **options) -> npr_kernels.NPRStem:
    """A stem whose batch norm has the given options, and parameters that are not the neutral ones."""
    torch.manual_seed(4)
    stem = npr_kernels.NPRStem(3, 8, bias=True, backend=backend, dtype=dtype)
    stem.bn = nn.BatchNorm2d(8, dtype=dtype, **options)
    for parameter in stem.bn.parameters():
        nn.init.normal_(parameter)
    return stem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_module_equals_its_layers(momentum, affine, track, backend):
    """Through training, evaluation, which has gradients too, and training again."""
    stem = modules_of(backend, momentum=momentum, affine=affine, track_running_stats=track, eps=0.01)
    other = copy.deepcopy(stem)
    for number, training in enumerate((True, True, False, True)):
        x = torch.randn(3, 3, 14, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        outputs = []
        for module in (stem, other):
            module.train(training).zero_grad()
        outputs = [stem(x), F.max_pool2d(F.relu(other.bn(reference_convolution(other.conv, x))), 3, 2, 1)]
        for out in outputs:
            (out * torch.arange(out.shape[3])).sum().backward()
        assert error(*outputs) < 1e-12
        for (name, found), expected in zip(stem.named_parameters(), other.parameters(), strict=True):
            if not (name == "conv.bias" and (training or not track)):
                assert error(found.grad, expected.grad) < 1e-11, name
        for found, expected in zip(stem.buffers(), other.buffers(), strict=True):
            assert error(found, expected) < 1e-13


def reference_convolution(conv: npr_kernels.NPRConv2d, x: Tensor) -> Tensor:
    return npr_kernels.npr_conv2d(x, conv.weight, conv.bias, **{**conv.options, "backend": "eager"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_gradients(backend):
    """Each input alone, and none at all: what is not asked for is not computed, and does not disturb the rest."""
    case = Case(dtype=torch.float64)
    tensors = [*case.tensors(), *batch_norm_tensors(case)]
    _, everything, _ = step(lambda *t: fused(case, backend, *t), tensors)
    for name, expected in everything.items():
        inputs = [t.clone() for t in tensors]
        wanted = inputs[INPUTS.index(name)].requires_grad_()
        out = fused(case, backend, *inputs)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (found,) = torch.autograd.grad(out, wanted, grad.to(GRADIENT_DTYPE).double())
        assert error(found, expected) < 1e-12
    assert not fused(case, backend, *tensors).requires_grad


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_of_full_resolution_is_kept(autocast, image_dtype, backend):
    """For backward: the image (the caller's own), one byte a pooled value, and what fits into a few pages."""
    case = Case(dtype=image_dtype, batch=4, height=64, width=64, out_channels=64)
    x, *_ = case.tensors()
    stem = npr_kernels.NPRStem(3, 64, backend=backend)
    saved = {}
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t) is None or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        out = stem(x)
    saved.pop(x.data_ptr())
    assert sum(t.untyped_storage().nbytes() for t in saved.values()) < out.numel() + 100_000
    out.float().sum().backward()
    assert stem.conv.weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_repeat_to_the_bit(backend):
    case = Case(batch=4, height=64, width=64, out_channels=64)
    tensors = [*case.tensors(), *batch_norm_tensors(case)]
    first, second = (step(lambda *t: fused(case, backend, *t), tensors) for _ in range(2))
    assert all(map(torch.equal, first[0], second[0]))
    assert all(map(torch.equal, first[1].values(), second[1].values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_pixels_spread_as_in_pytorch(value, backend):
    """Through the statistics to everything: a gradient scaler must see that the step is spoilt."""
    case = Case()
    tensors = [*case.tensors(), *batch_norm_tensors(case)]
    tensors[0][1, 0, 9, 1] = value
    (out, *running), gradients, _ = step(lambda *t: fused(case, backend, *t), tensors)
    truth, _, _ = step(lambda *t: layers(case, relu_and_pool, *t), double(*tensors))
    for found, expected in zip([out, *running], truth, strict=True):
        assert not found.isfinite().any() and not expected.isfinite().any()
    assert not gradients["weight"].isfinite().all() and not gradients["gamma"].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_per_channel_is_refused_as_in_pytorch(backend):
    stem = npr_kernels.NPRStem(3, 8, backend=backend)
    with pytest.raises(ValueError, match=r"more than 1 value per channel when training, got input size .*1, 8, 1, 1"):
        stem(torch.zeros(1, 3, 2, 2))
    assert stem.eval()(torch.zeros(1, 3, 2, 2)).shape == (1, 8, 1, 1)


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"gamma": torch.ones(5)}, ValueError, r"gamma must have the shape \(8,\), got \(5,\)"),
        ({"beta": torch.ones(8).double()}, TypeError, r"beta is torch.float64 and weight is torch.float32"),
        ({"running_var": torch.ones(8, device="meta")}, ValueError, r"running_var is on meta, weight on cpu"),
        ({"running_mean": None}, ValueError, r"running_mean and running_var must be given both, or neither"),
        (
            {"running_mean": None, "running_var": None, "training": False},
            ValueError,
            "running_mean must be given unless",
        ),
        ({"x": torch.zeros(2, 3, 1, 8)}, ValueError, "x is 1x8 pixels, smaller than one cell"),
        ({"x": torch.zeros(2, 3, 8, 8).double()}, TypeError, "x is torch.float64 and weight is torch.float32"),
    ],
    ids=str,
)
def test_bad_input(change, exception, message):
    good = {"x": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(8, 3, 3, 3), "bias": None}
    good |= dict.fromkeys(("gamma", "beta", "running_mean", "running_var"), torch.ones(8))
    with pytest.raises(exception, match=message):
        npr_kernels.npr_batch_norm_stem(**{**good, **change})


# --- several processes ---

PROCESSES = 2
SPLITS = [(3, 1), (4, 0)]  # images of the batch for each process


def process(rank: int, folder: str, backends: list[str]) -> None:
    """Training steps of a SyncBatchNorm stem on this process's share of the batch; what they give goes to a file."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    results = {}
    for backend in backends:
        for split in SPLITS:
            stem, x, grad = joined_step(backend)
            stem.bn = nn.SyncBatchNorm.convert_sync_batchnorm(stem.bn)
            share = slice(sum(split[:rank]), sum(split[: rank + 1]))
            x = x[share].requires_grad_()
            out = stem(x)
            out.backward(grad[share])
            gradients = [parameter.grad for parameter in stem.parameters()]
            results[backend, split] = (out.detach(), x.grad, list(stem.buffers()), gradients)
        with pytest.raises(ValueError, match="more than 1 value per channel in all processes"):
            copy.deepcopy(stem)(torch.zeros(1 - rank, 3, 2, 2, dtype=torch.float64))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def joined_step(backend: str) -> tuple[npr_kernels.NPRStem, Tensor, Tensor]:
    """The stem, the joined batch and the gradient of the result."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 14, 18, generator=generator, dtype=torch.float64)
    return modules_of(backend), x, torch.randn(4, 8, 4, 5, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory) -> list[dict]:
    """What each process found, by backend and split."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with Gloo")
    folder = tmp_path_factory.mktemp("processes")
    backends = [name for name, reason in npr_kernels.available_backends().items() if not reason]
    torch.multiprocessing.spawn(process, (str(folder), backends), PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_synchronised_over_processes(split, backend, of_processes):
    """Equals one process on the joined batch, whose shares may differ or be empty."""
    outs, x_gradients, buffers, gradients = zip(*(found[backend, split] for found in of_processes), strict=True)
    stem, x, grad = joined_step(backend)
    x.requires_grad_()
    out = stem(x)
    out.backward(grad)
    assert error(torch.cat(outs), out) < 1e-12
    assert error(torch.cat(x_gradients), x.grad) < 1e-11
    for found in buffers:
        assert all(error(*pair) < 1e-13 for pair in zip(found, stem.buffers(), strict=True))
    for (name, parameter), *shares in zip(stem.named_parameters(), *gradients, strict=True):
        if name == "conv.bias":
            assert sum(shares).abs().max() < 1e-12
        else:
            assert error(sum(shares), parameter.grad) < 1e-11, name


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with Gloo")
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_layer_of_one_process(momentum, track, one_process):
    """As nn.BatchNorm2d, with and without running statistics; one value per channel is refused by both."""
    network = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum, track_running_stats=track))
    other, x = copy.deepcopy(network), torch.randn(3, 4, 5, 5)
    SyncBatchNorm.replace(network)
    for mode in (True, True, False):
        assert error(network.train(mode)(x), other.train(mode)(x)) < 1e-5
    assert all(error(*pair) < 1e-5 for pair in zip(network.buffers(), other.buffers(), strict=True))
    for layers in (network, other):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layers.train()(x[:1, :, :1, :1])
    before = copy.deepcopy(network.state_dict())
    assert network(x[:0]).shape == (0, 4, 5, 5)
    for name in ("0.running_mean", "0.running_var") if track else ():
        assert torch.equal(network.state_dict()[name], before[name])
