"""How Triton runs kernels here. Importing this module does not import Triton."""

from __future__ import annotations

import importlib.util
import os

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels, on CPU tensors
DEVICE = "cpu" if INTERPRETED else "cuda"  # type of the devices that Triton serves
GRID_LIMIT = 2**31 - 1  # programs of one launch
