"""Triton's interpreter, which needs no GPU, in a process of its own.

Triton decides between compiler and interpreter when a kernel is defined. So a file of tests has one test that calls
`run_under_interpreter(__file__)`; run by themselves, the tests marked `interpreted` are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")


def run_under_interpreter(file: str) -> None:
    """Run the tests of ``file`` under the interpreter; fails if one does, or if none ran."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
