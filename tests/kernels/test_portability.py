"""The CPU kernels on another processor family: cross-compiled for aarch64, run under emulation, compared with here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLAGS = ["-O2", "-std=c++20", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-static"]
KERNELS = sorted(path for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if not path.stem.endswith("operators"))


def checksums(compiler: str, program: Path, *runner: str) -> list[tuple[float, ...]]:
    """Of every operator and anchor, without the name of the instruction set that made them."""
    source = ROOT / "tests" / "kernels" / "portability.cpp"
    subprocess.run([compiler, *FLAGS, source, *KERNELS, "-o", program], check=True)
    output = subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout
    return [tuple(map(float, line.split()[2:])) for line in output.splitlines()]


def test_aarch64_agrees(tmp_path):
    for tool in ("c++", "aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: g++-aarch64-linux-gnu and qemu-user)")
    here = checksums("c++", tmp_path / "here")
    there = checksums("aarch64-linux-gnu-g++", tmp_path / "there", "qemu-aarch64")
    assert len(here) == len(there) == 14
    for expected, found in zip(here, there, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
