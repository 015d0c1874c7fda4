"""README's picture is what scripts/make_picture.py draws."""

from __future__ import annotations

import runpy
import sys

import numpy as np
from PIL import Image

from tests.conftest import ROOT

PICTURE = ROOT / "docs" / "pictures" / "npr.png"


def test_picture_can_be_made_again(tmp_path, monkeypatch):
    made, script = tmp_path / "npr.png", ROOT / "scripts" / "make_picture.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--output", str(made)])
    runpy.run_path(str(script), run_name="__main__")
    committed, again = (np.asarray(Image.open(path).convert("L"), np.float32) for path in (PICTURE, made))
    assert committed.shape == again.shape
    assert np.abs(committed - again).mean() < 2, "run python scripts/make_picture.py"  # fonts may differ a little
    assert made.stat().st_size < 300_000
