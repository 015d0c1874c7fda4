"""The detector selfbland: how photographs are blended with themselves, and that only they are learned from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model.detectors.layers import self_blended_images
from npr_model.detectors.layers.self_blended_images import RATIOS, convex_masks, moved, self_blended
from npr_model.detectors.selfbland import SelfBland
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process
from npr_model.training.trainer import Trainer

LABELS = torch.tensor([[1.0], [0.0], [1.0], [1.0], [0.0]])


def plain(count: int, seed: int, side: int = 32) -> Tensor:
    """Photographs of walls: one colour, a little brighter on one side. (N, 3, side, side) uint8."""
    generator = torch.Generator().manual_seed(seed)
    slope = 2 * torch.randn(count, 1, 1, 1, generator=generator) * torch.linspace(-1, 1, side)
    colour = 123 + 10 * torch.rand(count, 3, 1, 1, generator=generator)
    return (colour + slope).expand(-1, -1, side, -1).round().byte()


@pytest.mark.parametrize("size", [(40, 40), (24, 33)])
def test_masks_are_convex_with_a_soft_edge(size):
    torch.manual_seed(0)
    masks = convex_masks(torch.zeros(20, 3, *size, dtype=torch.float64))
    assert masks.shape == (20, 1, *size)
    low, high = masks.aminmax(dim=0)
    assert (low >= 0).all() and (high <= 1).all() and (masks == 1).any((1, 2, 3)).all()
    assert 0.05 < (masks > 0).double().mean() < 0.6 and ((masks > 0) & (masks < 1)).any((1, 2, 3)).all()
    first, second = ([2 * torch.randint(n // 2, (5000,)) for n in size] for _ in range(2))
    between = [(a + b) // 2 for a, b in zip(first, second, strict=True)]
    ends = torch.minimum(masks[..., first[0], first[1]], masks[..., second[0], second[1]])
    assert (masks[..., between[0], between[1]] >= ends - 1e-12).all()  # nothing between two points is farther outside


def test_a_blend_joins_source_and_target_along_the_mask(monkeypatch):
    torch.manual_seed(0)
    photographs = torch.randint(256, (64, 3, 8, 8)) / 255
    mask = torch.tensor([0.0, 0.0, 0.0, 0.4, 0.6, 1.0, 1.0, 1.0]).expand(64, 1, 8, 8)
    monkeypatch.setattr(self_blended_images, "altered", torch.zeros_like)
    monkeypatch.setattr(self_blended_images, "moved", lambda images: images)
    monkeypatch.setattr(self_blended_images, "convex_masks", lambda images: mask)
    target, blend = self_blended(photographs)
    found = set()
    for photograph, one, blended in zip(photographs, target, blend, strict=True):
        black = not one.any()
        assert black or torch.equal(one, photograph)
        source = photograph if black else torch.zeros_like(photograph)
        expected = {ratio: one + ratio * mask[0] * (source - one) for ratio in RATIOS}
        fits = [ratio for ratio in RATIOS if (blended - expected[ratio]).abs().max() < 0.51 / 255]
        found.add((black, *fits))
        assert torch.equal(blended, (255 * blended).round() / 255)
    assert found == {(black, *(r for r in RATIOS if r == ratio)) for black in (True, False) for ratio in RATIOS}


def test_moving_by_nothing_changes_nothing(monkeypatch):
    images = torch.rand(3, 3, 9, 12, dtype=torch.float64)
    assert (moved(images) - images).abs().max() > 0.01
    monkeypatch.setattr(self_blended_images, "SCALE", (1, 1))
    monkeypatch.setattr(self_blended_images, "TRANSLATION", (0, 0))
    torch.testing.assert_close(moved(images), images)


def test_generated_images_are_not_seen(small_efficientnet):
    torch.manual_seed(0)
    model, pixels, other = SelfBland(), plain(5, seed=0), plain(5, seed=1)
    real = LABELS.flatten() == 0

    def trained_on(images: Tensor) -> Tensor:
        torch.manual_seed(1)
        return model.training_images(images, LABELS)

    expected = trained_on(pixels)
    assert torch.equal(expected, trained_on(torch.where(real.view(-1, 1, 1, 1), pixels, other)))
    changed = (expected != trained_on(torch.where(real.view(-1, 1, 1, 1), other, pixels))).flatten(1).any(1)
    assert changed.all()
    assert expected.shape == pixels.shape and expected.dtype == torch.float32


def test_a_batch_without_photographs_trains_nothing(small_efficientnet):
    model = SelfBland()
    labels = torch.ones(2, 1)
    before = copy.deepcopy(model.state_dict())
    logits, own = model.forward_training(plain(2, seed=0), labels)
    assert own == 0 and logits.shape == (2, 1) and not logits.any()
    for name, value in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, before[name]), name
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())
    logits, _ = model.forward_training(plain(2, seed=0), 0 * labels)
    assert logits.shape == (2, 1) and logits.all()


def test_finds_blends_of_new_photographs(small_efficientnet):
    trainer = Trainer(TrainConfig(detector="selfbland", learning_rate=3e-3), Process(torch.device("cpu")))
    batch = plain(16, seed=0), (torch.arange(16) >= 8).float()[:, None]
    for _ in range(60):
        trainer.step(iter([batch]))
    model, labels = trainer.network.eval(), (torch.arange(128) >= 64).float()[:, None]
    with torch.inference_mode():
        logits = model(model.training_images(plain(128, seed=1), labels)).flatten()
    assert (logits[64:, None] > logits[:64]).double().mean() > 0.7  # the area under the ROC curve
