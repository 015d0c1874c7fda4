from __future__ import annotations

from pathlib import Path

import pytest

from npr_model.detectors import encoder as encoders
from tests.model.detectors.encoders import write


@pytest.fixture(autouse=True)
def small_encoder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The detector ojha uses a small random encoder, which needs no package."""
    path = write(tmp_path_factory.mktemp("encoder") / "small.onnx")
    monkeypatch.setenv(encoders.FILE_VARIABLE, str(path))
    return path
