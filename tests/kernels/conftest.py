"""What several files and processes of these tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.kernels.backends.emulation import Emulation, compile_emulation


@pytest.fixture(scope="session")
def emulation_library(tmp_path_factory, request) -> Path:
    """The CUDA kernels on emulated threads, compiled once for all processes of a run."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose processes have their folders in one
        folder = folder.parent
    library = Path(os.environ.get("NPR_EMULATION_LIBRARY", folder / "emulated_kernels.so"))
    with FileLock(f"{library}.lock"):
        if not library.exists():
            compile_emulation(library)
    return library


@pytest.fixture(scope="session")
def emulation(emulation_library) -> Emulation:
    """The kernels, to be called on CPU tensors."""
    return Emulation(emulation_library)
