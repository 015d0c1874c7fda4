"""Builds the compiled extension; everything else is in pyproject.toml.

NPR_KERNELS_BUILD says what to build. The toolkit found decides, never the presence of a GPU:
  auto   what the compilers found allow (the default)
  cpu    the CPU kernels; no C++ compiler is an error
  cuda   the CPU and the CUDA kernels; no nvcc is an error
  none   nothing: a pure-Python install that runs on plain PyTorch
What was built is printed, kept in npr_kernels/_build_info.json and shown by `python -m npr_kernels.info`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
BUILD_INFO = ROOT / "npr_kernels" / "_build_info.json"
CHOICES = ("auto", "cpu", "cuda", "none")
TARGET_TORCH = "0x020a000000000000"  # torch 2.10, the oldest whose stable ABI has all that csrc/ uses


def version_of(program: str) -> str | None:
    """First line of `program --version` that names a version, None if there is no such program."""
    if shutil.which(program) is None:
        return None
    lines = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else program)


def plan() -> list[Path]:
    """The sources to compile, as NPR_KERNELS_BUILD and the tools found say."""
    choice = os.environ.get("NPR_KERNELS_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"NPR_KERNELS_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    compiler, nvcc = version_of(os.environ.get("CXX", "c++")), version_of("nvcc")
    if choice in ("cpu", "cuda") and compiler is None:
        sys.exit(f"NPR_KERNELS_BUILD={choice} needs a C++ compiler, and none was found (set CXX)")
    if choice == "cuda" and nvcc is None:
        sys.exit("NPR_KERNELS_BUILD=cuda needs nvcc, and none was found on the PATH (install the CUDA toolkit)")
    if choice == "cuda" and not (ROOT / "csrc" / "cuda").is_dir():
        sys.exit("NPR_KERNELS_BUILD=cuda: this version has no CUDA kernels; build with auto or cpu")
    sources = []
    if choice != "none" and compiler is not None:
        sources = [ROOT / "csrc" / "registration.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    if not sources:  # an earlier build must not be mistaken for this one
        for library in (ROOT / "npr_kernels").glob("_C*.so"):
            library.unlink()
    record(choice, sources, compiler, nvcc)
    return sources


def record(choice: str, sources: list[Path], compiler: str | None, nvcc: str | None) -> None:
    info = {
        "NPR_KERNELS_BUILD": choice,
        "sources": [path.relative_to(ROOT).as_posix() for path in sources],
        "compiler": compiler,
        "nvcc": nvcc,
    }
    if sources:
        import torch

        info |= {"torch": torch.__version__, "oldest torch served": "2.10"}
    BUILD_INFO.write_text(json.dumps(info, indent=2) + "\n")
    print(f"npr-kernels: building {len(sources)} sources with {compiler} (NPR_KERNELS_BUILD={choice}, nvcc: {nvcc})")


def extension(sources: list[Path]) -> dict:
    if not sources:
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    flags = [
        "-O3",
        "-std=c++20",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
    ]
    module = CppExtension(
        "npr_kernels._C",
        [path.relative_to(ROOT).as_posix() for path in sources],
        extra_compile_args={"cxx": [*flags, f"-DTORCH_TARGET_VERSION={TARGET_TORCH}"]},
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension(plan()))
