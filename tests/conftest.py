"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GPU_REQUIRED = os.environ.get("NPR_REQUIRE_CUDA") == "1"
# Environment of a process of tests that is started by a test and needs no plugins, which take seconds to import.
PLAIN_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
GPU = GPU_REQUIRED or torch.cuda.is_available()  # whether there are tests of a GPU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU a file keeps one of the tests that need one, whose skip tells of the rest.

    Several processes share the tests: those marked as a group, which have something slow in common or are slow
    themselves, stay together and come first, so that no process is left with them in the end.
    """
    if not GPU:
        on_gpu = {item: item.path for item in items if "cuda" in getattr(item, "fixturenames", ())}
        shown = {path: item for item, path in reversed(on_gpu.items())}.values()
        items[:] = [item for item in items if item not in on_gpu or item in shown]
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory is NaN, so that a kernel which leaves an output unwritten is seen.

    torch.use_deterministic_algorithms would first import torch's compiler, eight seconds in each process of tests.
    """
    torch._C._set_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch._C._set_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every run, whatever ran before in this process.

    Without a GPU torch.manual_seed would note the stack for each kind of device, which takes longer than a small test.
    """
    if GPU:
        torch.manual_seed(0)
    torch.default_generator.manual_seed(0)


@pytest.fixture
def cuda():
    """The GPU; the test is skipped without one, and fails instead where NPR_REQUIRE_CUDA=1 says there must be one."""
    if GPU_REQUIRED and not torch.cuda.is_available():
        pytest.fail("NPR_REQUIRE_CUDA=1, but torch finds no CUDA device")
    if not GPU:
        pytest.skip("no CUDA device for this file's tests of one")
    return torch.device("cuda")


@pytest.fixture
def shared() -> Path:
    """The material beside the repository: photographs, generated images, the paper's numbers."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (photographs and published numbers), which is not part of the repository")
    return path
