"""Explaining from Python: rows, pixels and maps of files, and the files that are written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from npr_model.errors import InputError
from npr_model.explanation.explain_files import RESULT, explain_files, write_explanation
from npr_model.scoring.options import ScoringOptions
from tests.model.conftest import noise


def test_a_program_explains_files(checkpoint, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, npr-kernels[plots]")
    for number in range(2):
        Image.fromarray(noise(20, 24, number)).save(tmp_path / f"{number}.png")
    options = ScoringOptions(checkpoint, view="crop:16", device="cpu")
    first, second = explain_files([tmp_path / "0.png", tmp_path / "1.png"], options)
    assert np.array_equal(first.pixels, noise(20, 24, 0)[2:18, 4:20]) and first.explanation.npr.shape == (3, 16, 16)
    assert first.row.logit == first.explanation.logit and first.row.verdict in ("real", "generated", "uncertain")
    (tmp_path / "out").mkdir()
    written = write_explanation(tmp_path / "out", first, second)
    assert all(path.is_file() for path in written)
    values = json.loads((tmp_path / "out" / RESULT).read_text())
    assert values["logit"] == pytest.approx(first.row.logit) and values["other"]["source"].endswith("1.png")


def test_files_of_two_sizes_are_not_compared(checkpoint, tmp_path):
    for side in (16, 18):
        Image.fromarray(noise(side, side)).save(tmp_path / f"{side}.png")
    with pytest.raises(InputError, match="the images are 16x16 and 18x18 pixels"):
        explain_files([tmp_path / "16.png", tmp_path / "18.png"], ScoringOptions(checkpoint, view="native"))
