"""From files to rows."""

from __future__ import annotations

import pytest
import torch

from benchmarks import screening
from benchmarks.harness import inputs
from benchmarks.harness.rows import OURS
from npr_model.imaging.views import View
from tests.benchmarks.harness.cases import CPU


@pytest.mark.parametrize(
    ("format", "view"), [("JPEG", "native"), ("PNG", "native"), ("WEBP", "native"), ("JPEG", "sample:3x16")]
)
def test_screening_judges_logits_and_pixels(format, view, tmp_path):
    paths = inputs.make_files(tmp_path, format, 32, 10)
    case = screening.benchmark(inputs.random_detector(), format, paths, View.parse(view), 1, CPU)
    for contender in case.contenders:
        parity = case.judge(contender.build()(), contender.dtype)
        assert parity.green, contender.name
        assert contender.name != screening.DECODING or parity.error == 0
    pixels = next(c for c in case.contenders if c.name == screening.DECODING).build()()
    pixels[3][4, 5, 1] ^= 1
    assert not case.judge(pixels, torch.float32).green
    times = {
        OURS: 20,
        screening.OURS_INT8: 10,
        screening.DECODING: 5,
        screening.WITHOUT_NETWORK: 8,
        screening.NETWORK: 16,
    }
    rows = [{"contender": c.name, "median_ms": times.get(c.name, 100)} for c in case.contenders]
    rows = {row["contender"]: row for row in screening.with_rates(rows, 10)}
    assert rows[OURS]["images_per_second"] == 500 and rows[OURS]["share_of_slower_half"] == pytest.approx(0.8)
    assert rows[screening.WITHOUT_NETWORK]["share_of_decoding"] == pytest.approx(5 / 8)
    assert screening.OURS_INT8 not in rows or rows[screening.OURS_INT8]["share_of_decoding"] == pytest.approx(0.5)
