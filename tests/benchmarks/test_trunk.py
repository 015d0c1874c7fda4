"""The residual blocks."""

from __future__ import annotations

import torch

from benchmarks import trunk
from benchmarks.harness import inputs, runner
from tests.benchmarks.harness.cases import CPU, PEAKS


def test_residual_blocks_are_judged_each_and_together():
    """Their inputs follow from one another; what needs a GPU says so."""
    made = trunk.cases(inputs.random_detector(), 2, 32, torch.bfloat16, CPU, "trunk|layer1.2|layer2.[01]")
    names = []
    for name, maker in made:
        rows = runner.run(maker(), PEAKS, CPU, seconds=0)
        names.append(rows[0]["case"])
        assert [row["parity"] for row in rows] == ["green", *["unavailable"] * (len(rows) - 1)], name
    assert names == [
        "trunk, 2x64x8x8 bfloat16",
        "layer1.2, 2x256x8x8 bfloat16",
        "layer2.0, 2x256x8x8 bfloat16",
        "layer2.1, 2x512x4x4 bfloat16",
    ]
