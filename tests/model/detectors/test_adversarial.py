"""The detectors with a discriminator: what it learns from, and which loss reaches which of their parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model import checkpoints
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors.frepgan import LARGEST, FrePGAN
from npr_model.detectors.lgrad import LGrad

pytestmark = pytest.mark.usefixtures("narrow_resnet")
LABELS = torch.tensor([[0.0], [0.0], [1.0], [1.0]])


def batch(side: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (4, 3, side, side), dtype=torch.uint8, generator=generator)


def reached(part: nn.Module, loss: Tensor) -> bool:
    """Whether a loss has a gradient to any weight of a part."""
    gradients = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True, allow_unused=True)
    return any(gradient is not None and gradient.any() for gradient in gradients)


def loss_of(logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, LABELS.to(logits.dtype))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_lgrad_classifies_the_gradient_of_its_discriminator(context):
    torch.manual_seed(0)
    model = LGrad().double()
    pixels = batch(6)[:1].double() / 255
    with context():
        images = (pixels - model.pixel_mean) / model.pixel_std
        gradient = model.gradients(images)
    slopes = torch.empty_like(pixels)
    with torch.no_grad():
        for index in range(pixels.numel()):
            step = torch.zeros_like(pixels)
            step.view(-1)[index] = 1e-6
            up, down = model.discriminator(pixels + step), model.discriminator(pixels - step)
            slopes.view(-1)[index] = (up - down).item() / 2e-6
    expected = (slopes - slopes.min()) / (slopes.max() - slopes.min())
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)
    assert not gradient.requires_grad


def test_lgrads_discriminator_learns_from_photographs_alone():
    torch.manual_seed(0)
    model, pixels, other = LGrad(), batch(), batch(seed=1)
    state = torch.get_rng_state()
    logits, own = model.forward_training(pixels, LABELS)
    assert reached(model.discriminator, own) and not reached(model.classifier, own)
    assert reached(model.classifier, loss_of(logits)) and not reached(model.discriminator, loss_of(logits))
    torch.set_rng_state(state)
    assert torch.equal(own, model.forward_training(torch.cat([pixels[:2], other[2:]]), LABELS)[1])
    torch.set_rng_state(state)
    assert not torch.equal(own, model.forward_training(torch.cat([other[:2], pixels[2:]]), LABELS)[1])
    nothing = model.forward_training(pixels, torch.ones(4, 1))[1]
    assert nothing == 0 and nothing.requires_grad  # every process of a group needs gradients of the same parts


def test_lgrads_discriminator_finds_up_sampling():
    torch.manual_seed(0)
    model, pixels = LGrad(), batch()
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        losses.append(model.forward_training(pixels, LABELS)[1])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_frepgans_generator_works_against_its_discriminator():
    torch.manual_seed(0)
    model, pixels = FrePGAN().double(), batch()
    nn.init.normal_(model.generator.last.weight, std=0.1)
    logits, own = model.forward_training(pixels, LABELS.double())
    assert reached(model.classifier, loss_of(logits))
    assert not reached(model.generator, loss_of(logits)) and not reached(model.discriminator, loss_of(logits))
    assert not reached(model.classifier, own)
    direct = loss_of(model.discriminator(model.perturbed(pixels)))
    torch.testing.assert_close(own, direct)
    for part, sign in ((model.discriminator, 1), (model.generator, -1)):
        weights = list(part.parameters())
        gradients = torch.autograd.grad(own, weights, retain_graph=True)
        for gradient, plain in zip(gradients, torch.autograd.grad(direct, weights, retain_graph=True), strict=True):
            torch.testing.assert_close(gradient, sign * plain)


@pytest.mark.parametrize("size", [(16, 16), (7, 10), (1, 3)])
def test_frepgans_perturbation_is_bounded_and_begins_at_0(size):
    model = FrePGAN()
    pixels = torch.rand(2, 3, *size)
    assert model.generator(pixels).shape == pixels.shape and not model.generator(pixels).any()
    nn.init.normal_(model.generator.last.weight, std=10)
    perturbation = model.generator(pixels)
    assert 0.5 * LARGEST < perturbation.abs().max() <= LARGEST * (1 + 1e-6)
    changed = model.perturbed(pixels) - (pixels + model.generator(model.unit_pixels(pixels)) / model.pixel_std)
    torch.testing.assert_close(changed, torch.zeros_like(changed), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [LGrad, FrePGAN])
def test_a_checkpoint_without_the_discriminator_is_one_line(kind, tmp_path):
    model = kind()
    del model.discriminator
    checkpoints.save(tmp_path / "part.safetensors", model, Metadata())
    message = r"part.safetensors does not fit this network: missing discriminator.* and \d+ more"
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(tmp_path / "part.safetensors")
    assert "\n" not in str(caught.value)
