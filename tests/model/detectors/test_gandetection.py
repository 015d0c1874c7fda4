"""The detector gandetection: where its patches lie, how their logits are joined, and who learns from which image."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from npr_model.detectors import gandetection
from npr_model.detectors.gandetection import BLOCK, MOST, GANDetection
from npr_model.errors import InputError
from npr_model.training import loop
from npr_model.training.config import TrainConfig
from tests.model.conftest import encoded

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


@pytest.mark.parametrize("sets", [(0, 0), (2, 0, 1), (1, 1, 2, 0, 1, 2, 1), None])
def test_each_image_trains_the_member_of_its_training_set(sets):
    count = 4 if sets is None else len(sets)
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    model = with_members(1.0, 10.0, 100.0)
    given = () if sets is None else (torch.tensor(sets),)
    logits, own = model.forward_training(images, torch.ones(count, 1), *given)
    assert logits.shape == (count, 4) and own == 0
    logits.sum().backward()
    assert all(member.factor.grad is not None for member in model.members)  # as in every other process
    for image, number in enumerate(sets or (0, 1, 2, 0)):
        torch.testing.assert_close(logits[image], torch.full((4,), (image + 1) * 10.0**number))
    seen = [member.seen.pop().mean((1, 2, 3)).round().int().tolist() for member in model.members]
    assert sorted(itertools.chain(*seen)) == sorted([*range(1, count + 1)] * 4)


def test_a_member_without_images_keeps_its_statistics():
    torch.manual_seed(0)
    model = GANDetection().train()
    pixels = torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8)
    model.forward_training(pixels, torch.ones(2, 1), torch.tensor([2, 0]))
    means = [member.body.embeddings.batchnorm.running_mean for member in model.members]
    assert sum(bool(mean.any()) for mean in means) == 2 and all(mean.isfinite().all() for mean in means)


def test_members_learn_from_groups_of_their_own(labelled, tmp_path, monkeypatch):
    """Three generators and three sources: each member sees one of each, in training of several epochs."""
    sizes = {"0_real": ("cameras", "phones", "scans"), "1_fake": ("gan", "diffusion", "decoder")}
    root = labelled({f"{group}/{label}": 4 for label, groups in sizes.items() for group in groups})
    groups = {path.read_bytes(): path.parts[-3] for path in root.rglob("*.png")}
    values = {"batch_size": 4, "crop_size": 32, "flip_probability": 0.0, "workers": 0, "device": "cpu", "epochs": 2}
    config = TrainConfig(folders=(str(root),), detector="gandetection", **values)
    trained_by, train = defaultdict(set), GANDetection.forward_training

    def watched(self, images, labels, sets):
        for image, number in zip(images, sets.tolist(), strict=True):
            trained_by[groups[encoded(image.permute(1, 2, 0).numpy())]].add(number)
        return train(self, images, labels, sets)

    monkeypatch.setattr(GANDetection, "forward_training", watched)
    loop.train(config, tmp_path / "run")
    assert all(len(members) == 1 for members in trained_by.values())
    for names in sizes.values():
        assert set.union(*(trained_by[name] for name in names)) == {0, 1, 2}


def test_too_few_images_for_the_members_are_one_line(labelled, tmp_path):
    config = TrainConfig(folders=(str(labelled({"0_real": 4, "1_fake": 2})),), detector="gandetection", batch_size=4)
    with pytest.raises(InputError, match=r"each of the 3 networks .* the training data has only 2 generated images"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
