"""Derivatives of every order against finite differences and the eager backend, and the transforms of torch.func."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, hvp

import npr_kernels
from npr_kernels.testing import Case, error
from tests.kernels.parity import BACKENDS, DEVICES, FAST

CPU_BACKENDS = [backend for backend in FAST if DEVICES[backend.values[0]] == "cpu"]
ANCHORS = [(2, 0), (2, 3), (3, "mean"), (2, "max")]


def batch_norm_stem(x, weight, bias, **options):
    channels = torch.linspace(0.5, 1.5, weight.shape[0], dtype=weight.dtype, device=weight.device)
    return npr_kernels.npr_batch_norm_stem(x, weight, bias, channels, channels - 1, None, None, **options)


def evaluated_batch_norm_stem(x, weight, bias, **options):
    channels = torch.linspace(0.5, 1.5, weight.shape[0], dtype=weight.dtype, device=weight.device)
    return npr_kernels.npr_batch_norm_stem(
        x, weight, bias, channels, channels, channels - 1, channels, training=False, **options
    )


OPERATORS = [npr_kernels.npr_conv2d, npr_kernels.npr_stem, batch_norm_stem, evaluated_batch_norm_stem]


def float64_tensors(backend: str, grid_size: int, anchor, **fields) -> list[torch.Tensor]:
    case = Case(
        dtype=torch.float64, batch=1, height=6, width=6, channels=1, out_channels=2,
        grid_size=grid_size, anchor=anchor, **fields,
    )  # fmt: skip
    return list(case.tensors(DEVICES[backend]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("grid_size", "anchor"), ANCHORS)
def test_second_derivatives(grid_size, anchor, operator, backend):
    inputs = [t.requires_grad_() for t in float64_tensors(backend, grid_size, anchor)]

    def function(*tensors):
        return operator(*tensors, grid_size=grid_size, anchor=anchor, backend=backend)

    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
def test_second_derivatives_where_the_image_has_none(operator, backend):
    """The weight's gradient depends on the image, and for bytes on the weight alone."""
    x, weight, bias = Case(dtype=torch.uint8, weight_dtype=torch.float64).tensors(DEVICES[backend])
    results = []
    for name in (backend, "eager"):
        weight.requires_grad_().grad = None
        y = operator(x, weight, bias, scale=1 / 255, backend=name)
        (grad,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
        grad.square().sum().backward()
        results.append(weight.grad)
    assert error(*results) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("grid_size", "anchor"), ANCHORS)
def test_second_derivatives_of_the_map(grid_size, anchor, backend):
    x = float64_tensors(backend, grid_size, anchor)[0].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: npr_kernels.npr(x, grid_size, anchor, backend=backend).pow(3), [x])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("anchor", [0, "max"])
def test_what_people_compute_from_second_derivatives(anchor, operator, backend):
    """A Hessian, its product with a vector, and a penalty on the gradient, as GANs and saliency methods use it."""
    x, weight, bias = float64_tensors(backend, 2, anchor)
    x = torch.cat([x, x.flip(3)])
    results = []
    for name in (backend, "eager"):

        def loss(x, weight=weight, name=name):
            return operator(x, weight, bias, anchor=anchor, backend=name).pow(2).sum()

        image, parameter = x.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(image, parameter)
        (gradient,) = torch.autograd.grad(value, image, create_graph=True)
        (F.softplus(-value) + gradient.square().sum()).backward()
        results.append([hessian(loss, x), hvp(loss, x, x)[1], image.grad, parameter.grad])
    for result, expected in zip(*results, strict=True):
        assert expected.abs().max() > 0 and error(result, expected) < 1e-9


def sum_of_squares(operator, backend):
    def loss(x, weight):
        return operator(x, weight, None, backend=backend).square().sum()

    return loss


TRANSFORMS = {
    "grad": lambda f, x, w: torch.func.grad(f, argnums=(0, 1))(x, w),
    "images": lambda f, x, w: torch.func.vmap(lambda i: f(i[None], w))(x),
    "weights": lambda f, x, w: torch.func.vmap(lambda v: f(x, v))(torch.stack([w, -w, 2 * w])),
    "both": lambda f, x, w: torch.func.vmap(lambda i, v: f(i[None], v))(x, torch.stack([w, -w])),
    "images in another dimension": lambda f, x, w: torch.func.vmap(lambda i: f(i[None], w), in_dims=3)(x.movedim(0, 3)),
    "gradients of each image": lambda f, x, w: torch.func.vmap(
        torch.func.grad(lambda w, i: f(i[None], w)), in_dims=(None, 0)
    )(w, x),
    "gradient of a map": lambda f, x, w: torch.func.grad(
        lambda w: torch.func.vmap(lambda i: f(i[None], w))(x).sum()
    )(w),
    "jacobian": lambda f, x, w: torch.func.jacrev(f, argnums=1)(x, w),
    "jacobian of a jacobian": lambda f, x, w: torch.func.jacrev(torch.func.jacrev(f, argnums=1), argnums=1)(x, w),
    "map without gradients": lambda f, x, w: torch.no_grad()(torch.func.vmap(lambda i: f(i[None], w)))(x),
    "forward mode": lambda f, x, w: torch.func.jvp(lambda x: f(x, w), (x,), (x,)),
}  # fmt: skip


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    "operator", [lambda x, w, b, backend: npr_kernels.npr(x, backend=backend) * w.sum(), *OPERATORS]
)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, operator, backend):
    x, weight, _ = Case(dtype=torch.float64, height=6, width=6, out_channels=2).tensors()
    chosen = None if transform == "forward mode" else backend  # automatic choice: of plain PyTorch
    results = [TRANSFORMS[transform](sum_of_squares(operator, name), x, weight) for name in (chosen, "eager")]
    for result, expected in zip(*(torch.utils._pytree.tree_leaves(r) for r in results), strict=True):
        assert error(result, expected) < 1e-10


@pytest.mark.parametrize("backend", FAST)
def test_forward_mode_is_refused_by_name(backend):
    x, weight, bias = float64_tensors(backend, 2, 0)
    with forward_ad.dual_level():
        for tensors in ((forward_ad.make_dual(x, x), weight), (x, forward_ad.make_dual(weight, weight))):
            with pytest.raises(npr_kernels.BackendError, match="forward-mode"):
                npr_kernels.npr_conv2d(*tensors, bias, backend=backend)
            tangent = forward_ad.unpack_dual(npr_kernels.npr_conv2d(*tensors, bias)).tangent
            assert error(tangent, npr_kernels.npr_conv2d(x, weight, backend="eager")) < 1e-12


@pytest.mark.parametrize("backend", [None, *CPU_BACKENDS])
@pytest.mark.parametrize("function", [npr_kernels.npr_conv2d, npr_kernels.npr_stem])
@pytest.mark.parametrize("transform", ["grad", "forward mode"])
def test_transforms_inside_torch_compile(transform, function, backend):
    """There an operator of ours would be a constant: plain PyTorch serves the call, or the error names it."""
    x, weight, _ = Case(dtype=torch.float64, height=6, width=6, out_channels=2).tensors()

    def derivative(name):
        loss = sum_of_squares(function, name)
        if transform == "grad":
            return lambda w: torch.func.grad(lambda w: loss(x, w))(w)
        return lambda w: torch.func.jvp(lambda w: loss(x, w), (w,), (w,))[1]

    torch._dynamo.reset()
    compiled = torch.compile(derivative(backend), backend="eager")
    if backend is None:
        assert error(compiled(weight), derivative("eager")(weight)) < 1e-10
    else:
        with pytest.raises(Exception, match=r"does not support (transforms of torch\.func|forward-mode)"):
            compiled(weight)


@pytest.mark.parametrize("function", OPERATORS)
def test_a_mapped_call_in_an_ordinary_graph(function):
    """vmap hides from the call that a gradient to the image is wanted."""
    x, weight, bias = Case(dtype=torch.float64, height=6, width=8, out_channels=2).tensors()
    gradients = []
    for backend in (None, "eager"):
        images = torch.stack([x, -x]).requires_grad_()
        torch.func.vmap(lambda x, name=backend: function(x, weight, bias, backend=name))(
            images
        ).square().sum().backward()
        gradients.append(images.grad)
    assert error(*gradients) < 1e-10


def test_forward_mode_with_other_transforms_inside():
    x, weight, bias = Case(dtype=torch.float64, height=6, width=6, out_channels=2).tensors()

    def mapped(w):
        return torch.func.vmap(lambda x: npr_kernels.npr_conv2d(x, w))(x[None])

    expected = npr_kernels.npr_conv2d(x, weight)
    assert error(torch.func.jvp(mapped, (weight,), (weight,))[1][0], expected) < 1e-10
    with forward_ad.dual_level():
        assert error(mapped(weight)[0], expected) < 1e-10
    curvature = torch.func.hessian(lambda w: npr_kernels.npr_conv2d(x, w).square().sum())(weight)
    assert (
        error(curvature, hessian(lambda w: npr_kernels.npr_conv2d(x, w, backend="eager").square().sum(), weight))
        < 1e-10
    )
    gamma, beta = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    tangent = torch.func.jvp(
        lambda b: npr_kernels.npr_batch_norm_stem(x, weight, b, gamma, beta, None, None), (bias,), (bias,)
    )[1]
    assert error(tangent, torch.zeros_like(tangent)) < 1e-10


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("function", OPERATORS)
def test_a_map_over_nothing(function, backend):
    """The shapes are those of a map over one item, without the item. (Those of torch's own convolution are not.)"""
    x, weight, _ = Case(dtype=torch.float64, height=6, width=8).tensors()
    images, weights = x[:0], weight.expand(0, *weight.shape)

    def of(w, i):
        return function(i[None], w, None, backend=backend)

    for mapped in (
        torch.func.vmap(of, in_dims=(None, 0)),
        torch.func.vmap(torch.func.grad(lambda w, i: of(w, i).sum()), in_dims=(None, 0)),
    ):
        assert mapped(weight, images).shape == (0, *mapped(weight, x).shape[1:])
    of_weights = torch.func.vmap(lambda w: function(x, w, None, backend=backend))
    assert of_weights(weights).shape == (0, *of_weights(weight[None]).shape[1:])
