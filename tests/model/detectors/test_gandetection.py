"""The detector gandetection: where its patches lie, how their logits are joined, and who learns from which image."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from npr_model.detectors import gandetection
from npr_model.detectors.gandetection import BLOCK, MOST, GANDetection

pytestmark = pytest.mark.usefixtures("small_efficientnet")


class Brightness(nn.Module):
    """The mean of a patch, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.seen = nn.Parameter(torch.tensor(factor)), []

    def forward(self, patches: Tensor) -> Tensor:
        self.seen.append(patches.detach())
        return self.factor * patches.mean((1, 2, 3))[:, None]


def with_members(*factors: float) -> GANDetection:
    model = GANDetection()
    model.members = nn.ModuleList(map(Brightness, factors))
    return model


@pytest.mark.parametrize("side", [1, 15, 16, 17, 32, 33, 45, 100, 16 * MOST, 1000])
def test_patches_cover_a_side_and_begin_at_blocks(side):
    patch = gandetection.PATCH
    starts = gandetection._starts(max(side, patch))
    assert len(starts) <= MOST and all(start % BLOCK == 0 for start in starts) and starts[0] == 0
    assert max(side, patch) - BLOCK < starts[-1] + patch <= max(side, patch)
    if len(starts) < MOST:
        assert all(0 < b - a <= patch for a, b in itertools.pairwise(starts))


def test_an_image_has_the_mean_of_its_members_scores():
    """A member's score is the largest logit of a patch if it is positive, else the smallest."""
    model = with_members(1.0, -1.0, 0.5)
    images = torch.zeros(2, 3, 16, 32)
    images[0, ..., :16], images[0, ..., 16:] = 2, -3
    images[1, ..., :16], images[1, ..., 16:] = -2, -4
    expected = [(2 + 3 + 1) / 3, (-4 + 4 - 2) / 3]
    torch.testing.assert_close(model(images).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_each_image_trains_one_member(count):
    torch.manual_seed(0)
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    model, trained_by = with_members(1.0, 10.0, 100.0), [set() for _ in range(count)]
    for _ in range(20):
        model.zero_grad()
        logits, own = model.forward_training(images, torch.ones(count, 1))
        assert logits.shape == (count, 4) and own == 0
        logits.sum().backward()
        assert all(member.factor.grad is not None for member in model.members)  # as in every other process
        seen = [set(member.seen.pop().mean((1, 2, 3)).round().int().tolist()) for member in model.members]
        assert sorted(itertools.chain(*seen)) == list(range(1, count + 1))
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
        for number, numbers in enumerate(seen):
            for image in numbers:
                torch.testing.assert_close(logits[image - 1], torch.full((4,), image * 10.0**number))
                trained_by[image - 1].add(number)
    assert all(len(members) == 3 for members in trained_by)  # over many batches


def test_a_member_without_images_keeps_its_statistics():
    torch.manual_seed(0)
    model = GANDetection().train()
    model.forward_training(torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8), torch.ones(2, 1))
    means = [member.body.embeddings.batchnorm.running_mean for member in model.members]
    assert sum(bool(mean.any()) for mean in means) == 2 and all(mean.isfinite().all() for mean in means)


def test_members_take_turns_along_the_batch_of_all_processes(monkeypatch):
    """Two processes with 2 images each, and 3 members: none is without images."""
    model, trained = with_members(1.0, 10.0, 100.0), []
    monkeypatch.setattr(gandetection.dist, "is_initialized", lambda: True)
    for rank in range(2):
        monkeypatch.setattr(gandetection.dist, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        model.forward_training(torch.ones(2, 3, 16, 16), torch.ones(2, 1))  # one patch each
        trained.append([len(member.seen.pop()) for member in model.members])
    assert sorted(map(sum, zip(*trained, strict=True))) == [1, 1, 2]
