"""README's picture is what scripts/documents/make_picture.py draws."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from scripts.documents import make_picture
from tests.conftest import ROOT

PICTURE = ROOT / "docs" / "npr.png"


def test_picture_can_be_made_again(tmp_path, monkeypatch):
    made = tmp_path / "npr.png"
    monkeypatch.setattr(sys, "argv", ["make_picture", "--output", str(made)])
    make_picture.main()
    committed, again = (np.asarray(Image.open(path).convert("L"), np.float32) for path in (PICTURE, made))
    assert committed.shape == again.shape
    assert np.abs(committed - again).mean() < 2, (
        "run python -m scripts.documents.make_picture"
    )  # fonts may differ a little
    assert made.stat().st_size < 300_000
