"""The CPU kernels on processors that are not at hand, compared with those of this one: cross-compiled for aarch64 and
run under emulation; those for AVX-512 on any x86-64, with its intrinsics in plain C++."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group("portability")
FLAGS = ["-std=c++20", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-static"]
HERE = ROOT / "tests" / "kernels"
CPU = ROOT / "csrc" / "cpu"
KERNELS = sorted(path for path in CPU.glob("*.cpp") if not path.stem.endswith("operators"))
Checksums = dict[tuple[str, str], tuple[float, ...]]  # of every operator and anchor, or dtype and kind of bottleneck


def checksums(
    compiler: str, program: Path, sources: list[Path], *runner: str, optimise: str = "-O0"
) -> tuple[str, Checksums]:
    """The name of the instruction set that made them, and the checksums."""
    subprocess.run([compiler, optimise, *FLAGS, HERE / "portability.cpp", *sources, "-o", program], check=True)
    output = subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in output.splitlines()]
    return lines[0][0], {(what, which): tuple(map(float, sums)) for _, what, which, *sums in lines}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> tuple[str, Checksums]:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    return checksums("c++", tmp_path_factory.mktemp("here") / "here", KERNELS)


def test_aarch64_agrees(here, tmp_path):
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: g++-aarch64-linux-gnu and qemu-user)")
    _, there = checksums("aarch64-linux-gnu-g++", tmp_path / "there", KERNELS, "qemu-aarch64", optimise="-O2")
    assert len(there) == 17
    for name, found in there.items():
        assert found == pytest.approx(here[1][name], rel=1e-5)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with another instruction set of x86-64")
@pytest.mark.parametrize("capability", ["avx512", "avx512bf16"])
def test_emulated_avx512_agrees(here, capability, tmp_path):
    name, expected = here
    if name == capability:
        pytest.skip("this processor has it; every other test runs on it")
    kernels = re.sub("#define NPR_TARGET .*\n", "", (CPU / f"{capability}.cpp").read_text())
    source = tmp_path / "emulated.cpp"
    source.write_text(
        f'#include "{HERE}/avx512_emulated.h"\n{kernels.replace("instruction_set.h", f"{CPU}/instruction_set.h")}'
        "#include <new>\nnamespace npr::cpu {\n"
        f"const Kernels& kernels() {{ return {capability}::table; }}\n"
        "void out_of_memory() { throw std::bad_alloc(); }\n}\n"
    )
    emulated, found = checksums("c++", tmp_path / "emulated", [source])
    assert emulated == capability
    assert len(found) == (29 if capability == "avx512bf16" else 24)
    rounded = "avx512bf16" in (emulated, name)  # what comes to or from levels is bfloat16 there
    for (what, which), sums in found.items():
        other = ("float32" if what == "bfloat16" else what, which)
        if other in expected:  # a processor may be without products of integers
            exact = what not in ("bfloat16", "to_levels", "from_levels") or not rounded
            assert sums == pytest.approx(expected[other], rel=1e-5 if exact else 1e-2), (what, which)
