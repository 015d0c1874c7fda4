"""Builds the compiled extension; everything else is in pyproject.toml.

NPR_KERNELS_BUILD says what to build. The toolkit found decides, never the presence of a GPU:
  auto   what the compilers found allow (the default)
  cpu    the CPU kernels; no C++ compiler is an error
  cuda   the CPU and the CUDA kernels; no nvcc, or a torch that does not match it, is an error
  none   nothing: a pure-Python install that runs on plain PyTorch
TORCH_CUDA_ARCH_LIST names other architectures than 8.0, 9.0 and 10.0 (in torch's form).
What was built is printed, kept in npr_kernels/_build_info.json and shown by `python -m npr_kernels.info`.
"""

import json
import os
import re
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


def without_cuda(nvcc: str | None) -> str | None:
    """Why the CUDA kernels cannot be built, None if they can. What decides is the toolkit and torch, never a GPU."""
    if nvcc is None:
        return "nvcc was not found on the PATH (install the CUDA toolkit)"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    release = re.search(r"release (\d+)", nvcc)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc ({nvcc}) and torch's CUDA {torch.version.cuda} differ in their major version"
    return None


def plan() -> list[Path]:
    """The sources to compile, as NPR_KERNELS_BUILD and the tools found say."""
    choice = os.environ.get("NPR_KERNELS_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"NPR_KERNELS_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    compiler, nvcc = version_of(os.environ.get("CXX", "c++")), version_of("nvcc")
    if choice in ("cpu", "cuda") and compiler is None:
        sys.exit(f"NPR_KERNELS_BUILD={choice} needs a C++ compiler, and none was found (set CXX)")
    sources, cuda = [], f"NPR_KERNELS_BUILD={choice}"
    if choice != "none" and compiler is not None:
        sources = [ROOT / "csrc" / "registration.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
        cuda = without_cuda(nvcc) if choice != "cpu" else cuda
        if cuda and choice == "cuda":
            sys.exit(f"NPR_KERNELS_BUILD=cuda cannot build the CUDA kernels: {cuda}")
        if not cuda:
            sources += [ROOT / "csrc" / "cuda" / "operators.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    if not sources:  # an earlier build must not be mistaken for this one
        for library in (ROOT / "npr_kernels").glob("_C*.so"):
            library.unlink()
    record(choice, sources, compiler, nvcc, cuda)
    return sources


def architectures() -> str:
    """In torch's form: those of A100, H100 and B200 that nvcc knows, and PTX of the last for what comes after them."""
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return ";".join(a for a in ("8.0", "9.0", "10.0") if f"compute_{a.replace('.', '')}" in known) + "+PTX"


def with_warpgroups(architectures: str) -> str:
    """H100 with the instructions that no later GPU has, which the residual blocks are made of."""
    return re.sub(r"\b9\.0(?![\da-z+])", "9.0a", architectures)


def toolkit() -> str:
    """Folder with the headers and libraries of the nvcc on the PATH, which may be a link or a script that calls it."""
    steps = subprocess.run(["nvcc", "--dryrun", "-c", "any.cu"], capture_output=True, text=True).stderr
    folder = re.search(r"^#\$ _HERE_=(.+)$", steps, re.MULTILINE)
    return str((Path(folder[1]) if folder else Path(shutil.which("nvcc")).parent).parent)


def record(choice: str, sources: list[Path], compiler: str | None, nvcc: str | None, cuda: str | None) -> None:
    info = {
        "NPR_KERNELS_BUILD": choice,
        "sources": [path.relative_to(ROOT).as_posix() for path in sources],
        "compiler": compiler,
        "nvcc": nvcc,
        "cuda": f"not built: {cuda}" if cuda else "built",
    }
    if sources:
        import torch

        info |= {"torch": torch.__version__, "oldest torch served": "2.10"}
    if not cuda:
        if not os.environ.get("CUDA_PATH"):  # torch would take the folder above the script
            info["CUDA toolkit"] = os.environ.setdefault("CUDA_HOME", toolkit())
        chosen = with_warpgroups(os.environ.get("TORCH_CUDA_ARCH_LIST") or architectures())
        info["CUDA architectures"] = os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    BUILD_INFO.write_text(json.dumps(info, indent=2) + "\n")
    print(f"npr-kernels: building {len(sources)} sources with {compiler} (NPR_KERNELS_BUILD={choice}, nvcc: {nvcc})")
    print(f"npr-kernels: CUDA kernels {info['cuda']}")


def extension(sources: list[Path]) -> dict:
    if not sources:
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    definition = f"-DTORCH_TARGET_VERSION={TARGET_TORCH}"
    flags = [
        "-O3",
        "-std=c++20",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        definition,
    ]
    has_cuda = any(path.suffix == ".cu" for path in sources)
    module = (CUDAExtension if has_cuda else CppExtension)(
        "npr_kernels._C",
        [path.relative_to(ROOT).as_posix() for path in sources],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden"]},
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension(plan()))
