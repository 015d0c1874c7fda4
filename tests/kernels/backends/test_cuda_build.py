"""The CUDA kernels compile for every architecture they are shipped for, without spills and within their registers."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a", "100")
# A kernel's registers, so that the blocks it asks for (its __launch_bounds__) fit on a processor of 65536.
REGISTERS = {
    ("group_stem_kernel", "BFloat16"): 80,
    ("group_stem_kernel", ""): 128,
    ("stem_kernel", "BFloat16, false"): 128,
    ("stem_kernel", "Float16, false"): 128,
    ("stem_kernel", ""): 168,
    ("moments_kernel", "float"): 255,
    ("moments_kernel", ""): 128,
    ("tensor_core_kernel", "float"): 255,
    ("tensor_core_kernel", ""): 128,
    ("plain_kernel", "float"): 255,
    ("plain_kernel", ""): 168,
    ("finish", ""): 64,
    ("bottleneck_kernel", "64, 1, 64, 1, 64"): 128,
    ("bottleneck_kernel", "64, 1, 0, 1, 64"): 128,
    ("bottleneck_kernel", "128, 1, 0, 0, 0"): 128,
    ("bottleneck_kernel", "128, 2"): 255,
    ("bottleneck_kernel", ""): 168,
}


def bound(kernel: str, architecture: str) -> int:
    if "tensor_core_kernel" in kernel and architecture == "80":  # shared memory holds one block
        return 255
    return next(most for (name, arguments), most in REGISTERS.items() if name in kernel and arguments in kernel)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_spills(source, architecture, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += ["--cubin", source, "-o", tmp_path / "kernels.cubin"]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    text = report.stderr
    if shutil.which("c++filt"):
        text = subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout
    kernels = re.findall(
        r"entry function '(.+?)' for.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    assert kernels
    assert "(C75" not in text  # the compiler says so where it makes products wait for each other
    if architecture == "90a" and source.stem == "bottleneck":  # elsewhere the kernel is empty
        assert all(int(registers) > 100 for *_, registers in kernels)
    for kernel, stores, loads, registers in kernels:
        assert (stores, loads) == ("0", "0"), f"{kernel} spills {stores} bytes"
        assert int(registers) <= bound(kernel, architecture), f"{kernel} uses {registers} registers"
