"""The layers: what they compute in each mode, and the replacement of a network's first convolution."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import npr_kernels
from npr_kernels import reference
from npr_kernels.testing import Case, error

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_conv_of_bytes_equals_conv_of_the_normalised_image():
    conv = npr_kernels.NPRConv2d(3, 8, pixel_std=STD, bias=True)
    image = torch.randint(0, 256, (2, 3, 16, 18), dtype=torch.uint8)
    normalised = (image / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert error(conv(image), conv(normalised)) < 1e-5


def test_conv_initialises_and_prints_like_conv2d():
    torch.manual_seed(3)
    ours = npr_kernels.NPRConv2d(3, 8, 5, bias=True)
    torch.manual_seed(3)
    theirs = nn.Conv2d(3, 8, 5, bias=True)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert "grid_size=2, anchor=0" in repr(ours)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_stem_equals_its_layers(dtype, training):
    stem = npr_kernels.NPRStem(3, 16, pixel_std=STD, bias=True)
    nn.init.normal_(stem.bn.weight)
    nn.init.normal_(stem.bn.bias)
    stem.bn.running_mean.normal_()
    stem.bn.running_var.uniform_(0.5, 2)
    stem.train(training)
    layers = copy.deepcopy(stem)
    x, *_ = Case(dtype=dtype, height=21, width=30).tensors()
    scale = [2 / 3 / (255 * std) for std in STD] if dtype == torch.uint8 else (2 / 3,)
    y = reference.npr_conv2d(x, layers.conv.weight, layers.conv.bias, scale=scale)
    expected = F.max_pool2d(F.relu(layers.bn(y)), 3, 2, 1)
    assert error(stem(x), expected) < 1e-5
    assert error(stem.bn.running_mean, layers.bn.running_mean) < 1e-5
    assert error(stem.bn.running_var, layers.bn.running_var) < 1e-5


def test_modules_can_be_copied_pickled_and_cast():
    stem = npr_kernels.NPRStem(3, 4).eval()
    x, *_ = Case().tensors()
    assert torch.equal(pickle.loads(pickle.dumps(stem))(x), stem(x))
    assert copy.deepcopy(stem).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


class ResNetLike(nn.Module):
    """A 7x7 stride-2 convolution first, deep in a sub-module, as ResNets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 7, 2, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


class PatchTransformer(nn.Module):
    """Non-overlapping 4x4 patches as tokens, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT).mean(1))


def mobile_like() -> nn.Module:
    """A 3x3 convolution with padding "same", then depthwise ones."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Hardswish(), nn.Conv2d(8, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize("make", [ResNetLike, PatchTransformer, mobile_like])
@pytest.mark.parametrize(("grid_size", "anchor"), [(2, 0), (2, "max"), (4, 5)])
def test_replace_first_conv(make, grid_size, anchor):
    """The new network on an image equals the old one on the image's NPR map, and it trains."""
    model = make().eval()
    replaced = npr_kernels.replace_first_conv(model, grid_size=grid_size, anchor=anchor, scale=0.5)
    assert not any(isinstance(m, npr_kernels.NPRConv2d) for m in model.modules())
    assert list(replaced.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 32, 48)
    assert error(replaced(x), model(0.5 * reference.npr(x, grid_size, anchor))) < 1e-5
    replaced.train()(x).sum().backward()
    assert all(p.grad is not None for p in replaced.parameters())


def test_replace_first_conv_when_the_model_is_one():
    conv = nn.Conv2d(3, 4, 3, 2, 1)
    assert isinstance(npr_kernels.replace_first_conv(conv), npr_kernels.NPRConv2d)


class Shared(nn.Module):
    """One convolution under two names, of which the second is used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.nested = nn.ModuleDict({"alias": nn.Sequential(self.stem, nn.ReLU())})

    def forward(self, x):
        return self.nested["alias"](x)


def test_every_name_of_the_first_convolution_leads_to_the_new_one():
    model = Shared()
    replaced = npr_kernels.replace_first_conv(model)
    assert replaced.stem is replaced.nested["alias"][0] and isinstance(replaced.stem, npr_kernels.NPRConv2d)
    x = torch.rand(2, 3, 16, 16)
    assert error(replaced(x), model(2 / 3 * reference.npr(x))) < 1e-5


class Holder:
    """An object that is no module."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


class Hidden(nn.Module):
    """A convolution that is called through something that is no sub-module."""

    def __init__(self, hide, find) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.hidden, self.find = hide(self.stem), find

    def forward(self, x):
        return self.find(self.hidden)(x)


@pytest.mark.parametrize(
    ("hide", "find"),
    [
        (lambda conv: [conv], lambda hidden: hidden[0]),
        (lambda conv: {"deep": (conv,)}, lambda hidden: hidden["deep"][0]),
        (lambda conv: {conv: 1}, lambda hidden: next(iter(hidden))),
        (lambda conv: functools.partial(conv), lambda hidden: hidden),
        (lambda conv: Holder(conv), lambda hidden: hidden),
    ],
)
def test_what_holds_the_first_convolution_holds_the_new_one(hide, find):
    model = Hidden(hide, find)
    x = torch.rand(2, 3, 16, 16)
    assert error(npr_kernels.replace_first_conv(model)(x), model(2 / 3 * reference.npr(x))) < 1e-5


@pytest.mark.parametrize("hide", [lambda conv: conv.forward, lambda conv: [functools.partial(conv.forward)]])
def test_a_method_of_the_first_convolution_that_is_kept_is_refused(hide):
    with pytest.raises(ValueError, match=r"the model keeps forward of the first Conv2d \(stem\)"):
        npr_kernels.replace_first_conv(Hidden(hide, None))


def test_hooks_move_to_the_new_layer():
    model, calls = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1).requires_grad_(False).double()), []
    model[0].register_forward_hook(lambda *arguments: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *arguments: calls.append("before"))
    replaced = npr_kernels.replace_first_conv(model)
    replaced(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    assert calls == ["before", "after"] and not replaced[0].weight.requires_grad


def test_a_convolution_with_a_forward_method_of_its_own_is_refused():
    conv = nn.Conv2d(3, 8, 3)
    conv.forward = lambda x: x
    with pytest.raises(ValueError, match="forward method of its own"):
        npr_kernels.replace_first_conv(nn.Sequential(conv))
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="ParametrizedConv2d"):
        npr_kernels.replace_first_conv(nn.Sequential(parametrised))
    with pytest.raises(ValueError, match="cannot be copied"):
        npr_kernels.replace_first_conv(nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3))))


@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_the_stems_layers_run(training):
    stem, calls = npr_kernels.NPRStem(3, 8).train(training), []
    x = torch.rand(2, 3, 16, 16)
    expected = copy.deepcopy(stem)(x)
    for name, layer in (("conv", stem.conv), ("bn", stem.bn)):
        layer.register_forward_hook(lambda *arguments, name=name: calls.append(name))
        layer.register_full_backward_hook(lambda *arguments, name=name: calls.append(f"backward {name}"))
    y = stem(x)
    y.sum().backward()
    assert calls == ["conv", "bn", "backward bn", "backward conv"] and error(y, expected) < 1e-5


def test_hooks_for_all_modules_run():
    stem, seen = npr_kernels.NPRStem(3, 8), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *arguments: seen.append(type(module).__name__)
    )
    try:
        stem(torch.rand(2, 3, 16, 16))
    finally:
        handle.remove()
    assert {"NPRConv2d", "BatchNorm2d", "NPRStem"} <= set(seen)


@pytest.mark.parametrize(
    ("normalise", "parameter"),
    [
        (lambda conv: nn.utils.spectral_norm(conv), "weight_orig"),
        (lambda conv: nn.utils.weight_norm(conv), "weight_v"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "weight_orig"),
        (lambda conv: nn.utils.parametrizations.spectral_norm(conv), "parametrizations.weight.original"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_normalised_and_pruned_weights_train(normalise, parameter):
    """As the same layers do with plain PyTorch, for three steps."""
    torch.manual_seed(0)
    stem = npr_kernels.NPRStem(3, 8)
    other = copy.deepcopy(stem)
    other.conv.backend = "eager"
    losses = []
    for model in (stem, other):
        torch.manual_seed(1)
        normalise(model.conv)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        before = dict(model.conv.named_parameters())[parameter].detach().clone()
        x = torch.randn(2, 3, 16, 16)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert not torch.equal(dict(model.conv.named_parameters())[parameter], before)
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 8), nn.Identity(), nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False)]
)
@pytest.mark.parametrize("training", [False, True])
def test_another_normalisation_in_the_stem(norm, training):
    stem = npr_kernels.NPRStem(3, 8)
    stem.bn = norm
    stem.train(training)
    x = torch.rand(2, 3, 16, 16)
    expected = F.max_pool2d(F.relu(copy.deepcopy(norm)(stem.conv(x))), 3, 2, 1)
    assert error(stem(x), expected) < 1e-5


def test_functions_and_modules_take_bytes_alike():
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for pixel_std in (None, STD):
        conv = npr_kernels.NPRConv2d(3, 8, pixel_std=pixel_std)
        assert torch.equal(conv(image), npr_kernels.npr_conv2d(image, conv.weight, pixel_std=pixel_std))
    conv = npr_kernels.NPRConv2d(3, 8)
    assert error(conv(image), conv(image.float())) < 1e-5


def test_tracing():
    """torch.fx and torch.jit.trace: the graphs compute what the layers compute."""
    network = nn.Sequential(npr_kernels.NPRConv2d(3, 3, stride=1), nn.ReLU(), npr_kernels.NPRStem(3, 8))
    x = torch.rand(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(copy.deepcopy(network))
    for mode in (True, False):
        assert error(traced.train(mode)(x), network.train(mode)(x)) < 1e-5
    assert traced.get_submodule("2.bn").num_batches_tracked == network[2].bn.num_batches_tracked == 1
    with torch.no_grad(), pytest.warns(torch.jit.TracerWarning):
        other = torch.jit.trace(network, x)
    assert error(other(x), network(x)) < 1e-6


def test_meta_and_fake_tensors():
    network = nn.Sequential(npr_kernels.NPRStem(3, 8), npr_kernels.NPRConv2d(8, 4))
    for mode in (True, False):
        y = copy.deepcopy(network).to("meta").train(mode)(torch.rand(2, 3, 64, 60, device="meta"))
        assert y.shape == network(torch.rand(2, 3, 64, 60)).shape and y.device.type == "meta"


class Marked(torch.Tensor):
    """A subclass as users define them."""


def test_subclasses_of_tensors():
    x = torch.rand(2, 3, 16, 16)
    for module in (npr_kernels.NPRConv2d(3, 8), npr_kernels.NPRStem(3, 8)):
        y = module(x.as_subclass(Marked))
        assert type(y) is Marked and error(y.as_subclass(torch.Tensor), module(x)) < 1e-5
    assert type(npr_kernels.npr(x.as_subclass(Marked))) is Marked


def test_a_default_device_changes_nothing(monkeypatch):
    """torch.device as a context sees every function of torch, and is no reason to run layer by layer."""
    calls, fused = [], npr_kernels.functional.npr_batch_norm_stem
    monkeypatch.setattr(
        npr_kernels.functional, "npr_batch_norm_stem", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    stem, x = npr_kernels.NPRStem(3, 8), torch.rand(2, 3, 16, 16)
    with torch.device("cpu"):
        stem(x)
    assert calls
