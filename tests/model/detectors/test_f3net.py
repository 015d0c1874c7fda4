"""F3-Net: its two views of an image, and the attention between its branches."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

from npr_model.detectors.f3net import F3Net, FrequencyAwareDecomposition, LocalFrequencyStatistics, MixBlock
from npr_model.detectors.layers.frequency import dct_2d


def test_an_image_is_decomposed_into_bands():
    decomposition = FrequencyAwareDecomposition().double()
    nn.init.zeros_(decomposition.correction)
    x = torch.randn(2, 3, 40, 36, dtype=torch.float64)
    low, middle, high, everything = decomposition(x).split(3, 1)
    torch.testing.assert_close(everything, x)
    torch.testing.assert_close(low + middle + high, x)
    spectrum = dct_2d(low)
    position = torch.arange(40).view(-1, 1) / 40 + torch.arange(36) / 36
    limit = 8**-0.5  # the triangle below it is a sixteenth of the square
    assert spectrum[..., position >= limit].abs().max() < 1e-12 < spectrum[..., position < limit].abs().min()
    nn.init.constant_(decomposition.correction, 100.0)  # tanh maps it to 1
    torch.testing.assert_close(decomposition(x)[:, 9:], 2 * x)


def test_the_low_bands_are_shares_of_the_coefficients():
    decomposition = FrequencyAwareDecomposition().double()
    nn.init.zeros_(decomposition.correction)
    bands = dct_2d(decomposition(torch.randn(1, 3, 200, 160, dtype=torch.float64)))[0].abs() > 1e-9
    low, middle, high, everything = (bands[first].double().mean().item() for first in (0, 3, 6, 9))
    assert (low, middle, high) == pytest.approx((1 / 16, 1 / 16, 7 / 8), abs=0.004) and everything == 1


@pytest.mark.parametrize("size", [(24, 20), (11, 14)])
def test_the_local_statistics_are_those_of_a_sliding_window(size):
    statistics = LocalFrequencyStatistics()
    nn.init.zeros_(statistics.correction)
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    features = statistics(x)[0].detach()
    assert features.shape == (6, (size[0] + 1) // 2, (size[1] + 1) // 2)
    luma = np.pad(np.einsum("chw,c->hw", x[0].numpy(), [0.299, 0.587, 0.114]), 5)[1:, 1:]
    for i in range(features.shape[1]):
        for j in range(features.shape[2]):
            window = np.abs(scipy.fft.dctn(luma[2 * i : 2 * i + 10, 2 * j : 2 * j + 10], norm="ortho"))
            order = np.add.outer(np.arange(10), np.arange(10)) * 6 // 19
            energies = [window[order == band].sum() for band in range(6)]
            np.testing.assert_allclose(features[:, i, j], np.log10(np.array(energies) + 1e-5), rtol=0, atol=1e-5)


def test_rows_attend_to_the_rows_of_the_other_branch():
    torch.manual_seed(0)
    block = MixBlock(3).double().eval()
    first, second = torch.randn(2, 1, 3, 5, 4, dtype=torch.float64)
    assert all(torch.equal(out, x) for out, x in zip(block(first, second), (first, second), strict=True))
    for norm in block.norms:
        nn.init.uniform_(norm.weight, 0.5, 2)
    mixed = block(first, second)
    queries = [convolution(x) for convolution, x in zip(block.queries, (first, second), strict=True)]
    keys = [convolution(x) for convolution, x in zip(block.keys, (first, second), strict=True)]
    for out, own, other, norm in zip(mixed, (first, second), (second, first), block.norms, strict=True):
        expected = torch.empty_like(own)
        for channel in range(3):
            for row in range(5):
                products = [
                    sum(q[0, channel, row] @ k[0, channel, at] for q, k in zip(queries, keys, strict=True))
                    for at in range(5)
                ]
                weights = torch.softmax(torch.stack(products) / 8**0.5, 0)
                expected[0, channel, row] = (weights[:, None] * other[0, channel]).sum(0)
        torch.testing.assert_close(out, own + norm(expected))


@pytest.mark.parametrize("size", [(2, 2), (3, 18), (17, 33), (72, 50), (145, 200)])
def test_the_branches_fit_at_every_size(size, narrow_xception):
    model = F3Net().eval()
    seen = []
    for mixing in model.mixing.values():
        mixing.register_forward_hook(lambda _, maps, __: seen.append([x.shape[2:] for x in maps]))
    assert model(torch.zeros(1, 3, *size, dtype=torch.uint8)).isfinite().all()
    assert seen == [[tuple(-(-side // cell) for side in size)] * 2 for cell in (16, 32)]


def test_each_branch_changes_the_logit(narrow_xception):
    torch.manual_seed(0)
    model = F3Net().train()
    images = torch.randn(4, 3, 32, 32)
    model(images).sum().backward()
    reached = {name: parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters()}
    idle = {name.split(".")[2] for name, used in reached.items() if not used}
    # At first the attention has no weight: only its scale learns.
    assert idle == {"queries", "keys"}
    assert all(reached[f"mixing.{number}.norms.{branch}.weight"] for number in (7, 12) for branch in (0, 1))
    assert reached["decomposition.correction"] and reached["statistics.correction"]
