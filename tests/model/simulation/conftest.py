"""Decoders that are trained once, and a folder of photographs."""

from __future__ import annotations

import pytest
import torch

from npr_model import simulation
from npr_model.simulation import Simulator
from npr_model.simulation.photographs import Photograph, find_photographs
from tests.model.simulation.photos import crops, write_photographs


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    """Briefly trained decoders of every kind and two depths."""
    torch.set_num_threads(1)
    return simulation.fit_simulator(crops(64, 32), depths=(1, 2), steps=12)


@pytest.fixture
def photographs(tmp_path) -> list[Photograph]:
    """Six photographs, pieces of two scenes."""
    return find_photographs([write_photographs(tmp_path / "photos")], 48)[0]
