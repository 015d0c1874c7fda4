"""Builds the compiled extension; everything else is in pyproject.toml.

NPR_KERNELS_BUILD says what to build. The compilers on the PATH decide, never the presence of a GPU:
  auto   what the compilers allow (the default)
  cpu    the CPU kernels; no C++ compiler is an error
  cuda   the CPU and the CUDA kernels; no nvcc, or a torch that does not match it, is an error
  none   nothing: a pure-Python install that runs on plain PyTorch
TORCH_CUDA_ARCH_LIST names other architectures than 8.0, 9.0 and 10.0 (in torch's form).

The build prints what it compiles and records it in the package, in _build_info.json, which `npr info` shows. Nothing is
written before that: reading the version or the metadata changes no file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "npr_kernels"
CHOICES = ("auto", "cpu", "cuda", "none")
OLDEST_SETUPTOOLS = 77  # the first that reads the licence as pyproject.toml states it
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has all that csrc/ uses
TARGET_TORCH = "0x020a000000000000"  # the same, as the headers of that ABI want it


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


def installed_torch() -> str:
    """Version of the torch to compile against; ends the build in one line if it is missing or too old."""
    wanted = "torch {}.{} or later".format(*OLDEST_TORCH)
    try:
        import torch
    except ImportError:
        sys.exit(f"the extension is compiled against the installed torch, and there is none: install {wanted} first")
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        sys.exit(f"the extension needs {wanted}, and torch {torch.__version__} is installed")
    return torch.__version__


def plan() -> dict:
    """What to compile and with what, as NPR_KERNELS_BUILD and the compilers on the PATH say. Writes nothing."""
    choice = os.environ.get("NPR_KERNELS_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"NPR_KERNELS_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    compiler, nvcc = version_of(os.environ.get("CXX", "c++")), version_of("nvcc")
    if choice in ("cpu", "cuda") and compiler is None:
        sys.exit(f"NPR_KERNELS_BUILD={choice} needs a C++ compiler, and none was found (set CXX)")
    sources, versions, cuda = [], {}, f"NPR_KERNELS_BUILD={choice}"
    if choice != "none" and compiler is not None:
        versions = {"torch": installed_torch(), "oldest torch served": "{}.{}".format(*OLDEST_TORCH)}
        sources = [ROOT / "csrc" / "registration.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
        cuda = without_cuda(nvcc) if choice != "cpu" else cuda
        if cuda and choice == "cuda":
            sys.exit(f"NPR_KERNELS_BUILD=cuda cannot build the CUDA kernels: {cuda}")
        if not cuda:
            sources += [ROOT / "csrc" / "cuda" / "operators.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
            versions |= cuda_toolkit()
    return {
        "NPR_KERNELS_BUILD": choice,
        "sources": [path.relative_to(ROOT).as_posix() for path in sources],
        "compiler": compiler,
        "nvcc": nvcc,
        "cuda": f"not built: {cuda}" if cuda else "built",
        **versions,
    }


def cuda_toolkit() -> dict[str, str]:
    """The toolkit's folder and the architectures to build for, set where torch.utils.cpp_extension reads them."""
    chosen = {}
    if not os.environ.get("CUDA_PATH"):  # torch would take the folder above the script
        chosen["CUDA toolkit"] = os.environ.setdefault("CUDA_HOME", toolkit())
    os.environ["TORCH_CUDA_ARCH_LIST"] = with_warpgroups(os.environ.get("TORCH_CUDA_ARCH_LIST") or architectures())
    return {**chosen, "CUDA architectures": os.environ["TORCH_CUDA_ARCH_LIST"]}


def architectures() -> str:
    """In torch's form: those of A100, H100 and B200 that nvcc knows, and PTX of the last for what comes after them."""
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return ";".join(a for a in ("8.0", "9.0", "10.0") if f"compute_{a.replace('.', '')}" in known) + "+PTX"


def with_warpgroups(architectures: str) -> str:
    """H100 with the instructions that no later GPU has, which the residual blocks are made of."""
    return re.sub(r"\b9\.0(?![\da-z+])", "9.0a", architectures)


def definitions(architectures: str) -> list[str]:
    """The macro that tells csrc/cuda/warpgroup.h that code for 9.0a is built."""
    return ["-DNPR_WARPGROUPS"] if "9.0a" in re.split(r"[;\s]+", architectures) else []


def toolkit() -> str:
    """Folder with the headers and libraries of the nvcc on the PATH, which may be a link or a script that calls it."""
    steps = subprocess.run(["nvcc", "--dryrun", "-c", "any.cu"], capture_output=True, text=True).stderr
    folder = re.search(r"^#\$ _HERE_=(.+)$", steps, re.MULTILINE)
    return str((Path(folder[1]) if folder else Path(shutil.which("nvcc")).parent).parent)


def record(package: Path) -> None:
    """Write what was built into the package, where `npr info` looks for it."""
    package.mkdir(parents=True, exist_ok=True)
    (package / "_build_info.json").write_text(json.dumps(INFO, indent=2) + "\n")


class RecordedPackage(build_py):
    """Records a build that compiles nothing."""

    def run(self) -> None:
        super().run()
        package = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib, PACKAGE)
        for library in package.glob("_C*.so"):  # an earlier build must not be mistaken for this one
            library.unlink()
        record(package)


def extension() -> dict:
    """Arguments of setup() that compile INFO["sources"] with torch's own command."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class RecordedExtension(BuildExtension):
        """Says and records what it builds."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = "build/objects"  # kept, so that ninja compiles a source again only after a change

        def run(self) -> None:
            print("npr-kernels: building {} sources with {compiler}".format(len(INFO["sources"]), **INFO))
            print("npr-kernels: CUDA kernels {cuda}".format(**INFO))
            import fcntl  # compiling needs a Unix system; reading the metadata does not

            Path("build").mkdir(exist_ok=True)
            with open("build/lock", "w") as lock:  # the Makefile starts to compile while pip is still at work
                fcntl.flock(lock, fcntl.LOCK_EX)
                super().run()
            record(ROOT / PACKAGE if self.inplace else Path(self.build_lib, PACKAGE))

    flags = [
        "-O3",
        "-std=c++20",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        f"-DTORCH_TARGET_VERSION={TARGET_TORCH}",
    ]
    has_cuda = any(source.endswith(".cu") for source in INFO["sources"])
    nvcc = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden", *definitions(INFO.get("CUDA architectures", ""))]
    module = (CUDAExtension if has_cuda else CppExtension)(
        f"{PACKAGE}._C",
        INFO["sources"],
        extra_compile_args={"cxx": flags, "nvcc": nvcc},
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": RecordedExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    installed = f"setuptools {setuptools.__version__} is installed"
    sys.exit(f"the build needs setuptools {OLDEST_SETUPTOOLS} or later, and {installed}: pip install -U setuptools")
INFO = plan()
setuptools.setup(**(extension() if INFO["sources"] else {"cmdclass": {"build_py": RecordedPackage}}))
