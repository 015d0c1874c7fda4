"""Layers under what PyTorch's users do with modules: any of it must give what plain PyTorch gives, or an error.

NPR_FUZZ_CASES=20000 in the environment tries as many cases.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import npr_kernels
from npr_kernels.testing import error

EXAMPLES = int(os.environ.get("NPR_FUZZ_CASES", 60))
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 0.1}


seed = torch.default_generator.manual_seed  # torch.manual_seed takes longer than a small layer


def saved_and_loaded(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def hooked(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        layer.register_forward_hook(lambda layer, inputs, output: output * 2)
        layer.register_forward_pre_hook(lambda layer, inputs: None)
    return module


def on_weight(function):
    def changed(module: nn.Module) -> nn.Module:
        seed(5)
        function(module.conv if isinstance(module, npr_kernels.NPRStem) else module)
        return module

    return changed


def with_state(module: nn.Module) -> nn.Module:
    state = {name: tensor * 0.5 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state)
    return module


# What is done to the module, and then how it is called.
CHANGES: dict[str, Any] = {
    "nothing": lambda module: module,
    "copy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": saved_and_loaded,
    "hooks": hooked,
    "state": with_state,
    "frozen": lambda module: module.requires_grad_(False),
    "spectral": on_weight(spectral_norm),
    "new spectral": on_weight(parametrizations.spectral_norm),
    "weight norm": on_weight(weight_norm),
    "new weight norm": on_weight(parametrizations.weight_norm),
    "pruned": on_weight(lambda conv: prune.l1_unstructured(conv, "weight", 0.3)),
}


def plain(module: nn.Module, x: Tensor):
    return module(x)


def gradients(module: nn.Module, x: Tensor):
    x = x.clone().requires_grad_(x.is_floating_point())
    y = module(x)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    return y, *(torch.autograd.grad(y.float().square().sum(), wanted, allow_unused=True) if wanted else ())


def penalty(module: nn.Module, x: Tensor):
    wanted = [p for p in (x.clone().requires_grad_(x.is_floating_point()), *module.parameters()) if p.requires_grad]
    image = wanted[0] if wanted and wanted[0].shape == x.shape else x
    if not wanted:
        return module(x)
    first = torch.autograd.grad(module(image).double().pow(2).sum(), wanted, create_graph=True, allow_unused=True)
    norm = sum(g.double().square().sum() for g in first if g is not None)
    return torch.autograd.grad(norm, wanted, allow_unused=True) if norm.requires_grad else norm


def functional(module: nn.Module, x: Tensor):
    return functional_call(module, {name: tensor * 2 for name, tensor in module.named_parameters()}, (x,))


def mapped(module: nn.Module, x: Tensor):
    return vmap(lambda image: module(image[None])[0])(x)


def gradients_of_each(module: nn.Module, x: Tensor):
    parameters = {name: tensor.detach() for name, tensor in module.named_parameters()}

    def loss(parameters, image):
        return functional_call(module, parameters, (image[None],)).square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(parameters, x)


def autocast(module: nn.Module, x: Tensor):
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


def inference(module: nn.Module, x: Tensor):
    with torch.inference_mode():
        return module(x).clone()


def traced(module: nn.Module, x: Tensor):
    return torch.fx.symbolic_trace(module)(x)


def exported(module: nn.Module, x: Tensor):
    return torch.export.export(module, (x,)).module()(x)


CALLS = [plain, gradients, penalty, functional, mapped, gradients_of_each, autocast, inference, traced]
DERIVATIVES = [gradients, penalty, gradients_of_each]


@st.composite
def modules(draw) -> tuple[nn.Module, Tensor]:
    grid_size = draw(st.integers(2, 3))
    anchor = draw(st.sampled_from([*range(grid_size**2), "mean", "max"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    channels, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    options = {
        "stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 2)), "bias": draw(st.booleans()),
        "grid_size": grid_size, "anchor": anchor, "dtype": dtype,
        "pixel_std": draw(st.sampled_from([None, (0.2, 0.25, 0.3, 0.35)[:channels]])),
    }  # fmt: skip
    make = draw(st.sampled_from([npr_kernels.NPRConv2d, npr_kernels.NPRStem]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    seed(generator.initial_seed())
    module = make(channels, draw(st.sampled_from([1, 3, 16])), kernel, **options).train(draw(st.booleans()))
    if isinstance(module, npr_kernels.NPRStem):  # with a bias of 0, ReLU's gradient can depend on the rounding of 0
        nn.init.normal_(module.bn.weight)
        nn.init.normal_(module.bn.bias)
        module.bn.running_mean.normal_()
        module.bn.running_var.uniform_(0.5, 2)
    shape = (draw(st.integers(1, 3)), channels, draw(st.integers(6, 13)), draw(st.integers(6, 13)))
    if draw(st.booleans()):
        x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        x = torch.randn(shape, generator=generator).to(dtype)
    return module, x.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else x


def outcome(module: nn.Module, change: str, call, x: Tensor) -> list[Tensor] | Exception:
    try:
        seed(7)
        results = call(CHANGES[change](module), x)
        return [leaf for leaf in torch.utils._pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
    except Exception as exception:
        return exception


SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize="NPR_FUZZ_CASES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@SETTINGS
@given(modules(), st.sampled_from(sorted(CHANGES)), st.sampled_from(CALLS))
def test_as_plain_pytorch(made, change, call):
    """The same numbers, or an error in both; where the kernels alone fail, the error says what to do."""
    check(*made, change, call)


@settings(SETTINGS, max_examples=max(EXAMPLES // 50, 3))  # an export takes as long as twenty other calls
@given(modules(), st.sampled_from(sorted(CHANGES)))
def test_exports_as_plain_pytorch(made, change):
    check(*made, change, exported)


def check(module: nn.Module, x: Tensor, change: str, call) -> None:
    other = copy.deepcopy(module)
    for layer in other.modules():
        if isinstance(layer, npr_kernels.NPRConv2d):
            layer.backend = "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = outcome(module, change, call, x), outcome(other, change, call, x)
    if isinstance(theirs, Exception):
        return  # PyTorch refuses it
    if isinstance(ours, Exception):
        raise AssertionError(f"{change}, {call.__name__}: only the kernels fail") from ours
    assert [(t.dtype, t.shape) for t in ours] == [(t.dtype, t.shape) for t in theirs]
    if call in DERIVATIVES and isinstance(module, npr_kernels.NPRStem) and module.bn.weight.dtype == torch.bfloat16:
        return  # which of nearly equal values is the maximum is a matter of rounding; test_training_stem.py gives it
    rounding = max((ROUNDING[t.dtype] for t in theirs if t.dtype in ROUNDING), default=0)
    if all(error(*pair) <= rounding for pair in zip(ours, theirs, strict=True)):
        return
    # The gradient through a batch norm is a small difference of large numbers: plain PyTorch errs as well.
    exact = outcome(other.double(), "nothing", call, x.double() if x.is_floating_point() else x)
    assert not isinstance(exact, Exception)
    largest = max(t.double().abs().max().item() for t in exact if t.numel())
    for result, expected, truth in zip(ours, theirs, exact, strict=True):
        limit = 4 * (expected.double() - truth).abs().max() + rounding * largest
        assert (result.double() - truth).abs().max() <= limit, (change, call.__name__)
