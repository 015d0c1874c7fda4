"""The detectors with a discriminator: what it learns from, and which loss reaches which of their parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model import checkpoints
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors.frepgan import LARGEST, FrePGAN
from npr_model.detectors.layers import stylegan_discriminator
from npr_model.detectors.layers.stylegan_discriminator import StyleGANDiscriminator
from npr_model.detectors.lgrad import LGrad
from npr_model.errors import InputError
from npr_model.inference.freeze import freeze
from npr_model.training import loop
from npr_model.training.config import TrainConfig

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


@pytest.fixture
def small_stylegan(monkeypatch, tmp_path) -> Path:
    """The discriminator of a StyleGAN takes 32x32 pixels and is narrow. A file with its weights, all random."""
    monkeypatch.setattr(stylegan_discriminator, "SIDE", 32)
    monkeypatch.setattr(stylegan_discriminator, "_MAPS", 64)
    monkeypatch.setattr(stylegan_discriminator, "_MOST_MAPS", 8)
    torch.manual_seed(1)
    state = StyleGANDiscriminator().state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            tensor.normal_()
    torch.save(state, tmp_path / "stylegan_discriminator.pth")
    return tmp_path / "stylegan_discriminator.pth"


def test_a_stylegans_discriminator_has_the_names_and_shapes_of_genforce():
    channels = {512: 32, 256: 64, 128: 128, 64: 256, 32: 512, 16: 512, 8: 512, 4: 512, 2: 512}
    expected = {"lod": ()}
    for number, side in enumerate((256, 128, 64, 32, 16, 8, 4)):
        expected[f"input{number}.weight"] = (channels[side], 3, 1, 1)
        more = side == 4  # the standard deviation
        expected[f"layer{2 * number}.weight"] = (channels[side], channels[side] + more, 3, 3)
        if side > 4:
            expected[f"layer{2 * number + 1}.weight"] = (channels[side // 2], channels[side], 3, 3)
            expected[f"layer{2 * number + 1}.blur.kernel"] = (channels[side], 1, 3, 3)
    expected |= {"layer13.weight": (512, 512 * 16), "layer14.weight": (1, 512)}
    expected |= {name.replace("weight", "bias"): shape[:1] for name, shape in expected.items() if "weight" in name}
    with torch.device("meta"):
        model = StyleGANDiscriminator()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert f"{count:,} parameters" in StyleGANDiscriminator.__doc__
    assert f"{count + 23_510_081:,} parameters" in LGrad.__doc__  # with a whole ResNet-50


def test_a_stylegans_discriminator_equals_a_direct_computation(small_stylegan):
    state = {name: tensor.double() for name, tensor in torch.load(small_stylegan).items()}
    model = StyleGANDiscriminator().double()
    model.load_state_dict(state)
    pixels = 2 * torch.rand(2, 3, 32, 32, dtype=torch.float64) - 1

    def layer(name: str, x: Tensor, gain: float = 2**0.5) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        scaled = gain * weight / weight[0].numel() ** 0.5
        return (
            F.linear(x, scaled, bias) if weight.ndim == 2 else F.conv2d(x, scaled, bias, padding=weight.shape[2] // 2)
        )

    def slope(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
    for image, logit in zip(pixels.split(1), model(pixels), strict=True):
        x = slope(layer("input0", image))
        for number in (0, 2, 4):
            x = slope(layer(f"layer{number}", x))
            blurred = F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
            x = slope(F.avg_pool2d(layer(f"layer{number + 1}", blurred), 2))
        assert x.shape == (1, 8, 4, 4)
        x = slope(layer("layer6", torch.cat([x, torch.full((1, 1, 4, 4), 1e-4, dtype=torch.float64)], 1)))
        torch.testing.assert_close(logit[None], layer("layer8", slope(layer("layer7", x.flatten(1))), 1.0))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_lgrad_resizes_to_a_pretrained_discriminator(context, small_stylegan):
    model = LGrad(pretrained=True).double()
    with context():
        gradient = model.gradients(batch(20))
        whole = model.gradients(batch(32))
    resized = F.interpolate(batch(20).double() / 255, (32, 32), mode="bilinear", antialias=True).requires_grad_()
    (slopes,) = torch.autograd.grad(model.discriminator(2 * resized - 1).sum(), resized)
    low, high = slopes.amin((1, 2, 3), keepdim=True), slopes.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, (slopes - low) / (high - low))
    assert whole.shape == gradient.shape == (4, 3, 32, 32) and not torch.allclose(whole, gradient)
    logits, own = model.forward_training(batch(20), LABELS)
    assert own == 0 and reached(model.classifier, loss_of(logits))
    assert not any(parameter.requires_grad for parameter in model.discriminator.parameters())


def test_lgrad_is_trained_with_a_discriminator_from_a_file(small_stylegan, labelled, tmp_path):
    """The checkpoint holds it, unchanged, and needs the file no more."""
    root = labelled({"0_real": 4, "1_fake": 4})
    values = {"batch_size": 4, "crop_size": 24, "workers": 0, "device": "cpu", "average_decay": 0.9}
    config = TrainConfig(folders=(str(root),), detector="lgrad", discriminator=str(small_stylegan), epochs=2, **values)
    whole = loop.train(config, tmp_path / "whole")
    loop.train(replace(config, epochs=1), tmp_path / "cut")
    away = small_stylegan.rename(tmp_path / "away.pth")
    assert loop.train(config, tmp_path / "cut", resume=True).read_bytes() == whole.read_bytes()
    away.rename(small_stylegan)
    with pytest.raises(InputError, match="has a discriminator from a file: set discriminator to that file"):
        loop.train(replace(config, start=str(whole), discriminator=""), tmp_path / "other")
    tuned = checkpoints.load(loop.train(replace(config, start=str(whole), epochs=1), tmp_path / "tuned"))
    state = torch.load(small_stylegan)
    torch.save({name: value + (name == "layer0.bias") for name, value in state.items()}, small_stylegan)
    with pytest.raises(InputError, match=r"has another discriminator than .*: give the file that it was trained with"):
        loop.train(replace(config, start=str(whole)), tmp_path / "mixed")
    small_stylegan.unlink()
    for loaded in (checkpoints.load(whole), tuned):
        assert loaded.model.pretrained and loaded.metadata.training["discriminator"] == small_stylegan.name
        found = loaded.model.discriminator.state_dict()
        assert all(torch.equal(found[name], state[name]) for name in state)
    pixels = batch(24)
    torch.testing.assert_close(freeze(loaded.model)(pixels), loaded.model(pixels))
    broken = pixels.float()
    broken[0, 0, 12, 12] = float("nan")
    assert loaded.model(broken)[0].isnan() and loaded.model(broken)[1].isfinite()
    with pytest.raises(CheckpointError, match=r"stylegan_discriminator\.pth does not exist"):
        loop.train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer7.bias"), r"does not fit this network: missing layer7\.bias"),
        (lambda state: state.update(mapping=torch.ones(3)), "does not fit this network: unexpected mapping"),
        (lambda state: state["lod"].fill_(1.5), r"had not grown to its full size \(lod 1\.5\): use one with lod 0"),
        (lambda state: state.update(lod=print), "holds more than weights, and loading it could run code"),
    ],
)
def test_a_discriminator_that_does_not_fit_is_one_line(change, message, small_stylegan, labelled, tmp_path):
    state = torch.load(small_stylegan)
    change(state)
    torch.save(state, small_stylegan)
    folders = (str(labelled({"0_real": 4, "1_fake": 4})),)
    config = TrainConfig(folders=folders, detector="lgrad", discriminator=str(small_stylegan), batch_size=4)
    with pytest.raises(InputError, match=message) as caught:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


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
