"""What photographs may have gone through before: resampling and retouching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from npr_model.simulation import history
from npr_model.simulation.photographs import to_pixels, to_tensor
from tests.model.conftest import noise
from tests.model.simulation.photos import crops, seeded


@pytest.mark.parametrize("kernel", history.KERNELS)
@pytest.mark.parametrize("size", [(20, 30), (61, 41), (90, 53)], ids=str)
def test_resampling_equals_pillows(kernel, size):
    pixels = 80 + noise(50, 40) // 3  # far from 0 and 255, where Pillow clips between its passes
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[kernel.upper()]))
    result = to_pixels(history.resample(to_tensor(pixels), size, kernel))
    assert np.abs(result.astype(int) - expected).max() <= 1  # Pillow also rounds between its passes


def test_history_changes_the_expected_share_of_images():
    image = crops(1, 64) / 255
    changed = [history.retouch(image, seeded(seed)) for seed in range(60)]
    sharpness = [(x[..., 1:] - x[..., :-1]).square().mean().item() for x in changed]
    plain = (image[..., 1:] - image[..., :-1]).square().mean().item()
    assert 15 < sum(torch.equal(x, image) for x in changed) < 55  # expected: 0.85**3 = 0.61 of 60
    assert max(sharpness) > 1.2 * plain and min(sharpness) < 0.9 * plain
    enlarged = [history.enlarge(image, seeded(seed)) for seed in range(60)]
    assert 3 < sum(not torch.equal(x, image) for x in enlarged) < 25
    torch.testing.assert_close(history._median(torch.ones(1, 3, 4, 5)), torch.ones(1, 3, 4, 5))
