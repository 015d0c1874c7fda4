"""Building and installing: what the build writes and when, the wheel, and the packages that pyproject.toml names."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import npr_kernels
import npr_model
from npr_kernels import extension
from tests.conftest import ROOT

needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))
PACKAGES = ("npr_kernels", "npr_model")


def sources_alone(folder: Path) -> None:
    """Copy what setup.py needs: it writes beside itself."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "npr_kernels").mkdir()
    shutil.copy(ROOT / "npr_kernels" / "__init__.py", folder / "npr_kernels")  # has the version


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, with nothing in the environment that names another compiler."""
    variables = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME", "CUDA_PATH")}
    variables |= environment
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=variables)


def hook(name: str, folder: Path, **environment: str) -> None:
    """Call what pip calls: a hook of the build backend."""
    code = f"from setuptools import build_meta; build_meta.{name}('out')"
    (folder / "out").mkdir()
    result = python("-c", code, folder=folder, **environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_reading_the_metadata_changes_no_file(choice, tmp_path):
    """An earlier build stays as it is: its library, and what was recorded about it."""
    sources_alone(tmp_path)
    (tmp_path / "npr_kernels" / "_C.abi3.so").write_text("built before")
    (tmp_path / "npr_kernels" / "_build_info.json").write_text("recorded before")
    hook("prepare_metadata_for_build_wheel", tmp_path, NPR_KERNELS_BUILD=choice)
    found = {path.name: path.read_text() for path in (tmp_path / "npr_kernels").iterdir() if path.suffix != ".py"}
    assert found == {"_C.abi3.so": "built before", "_build_info.json": "recorded before"}
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("choice", "path", "message"),
    [
        ("cuda", "no nvcc", "NPR_KERNELS_BUILD=cuda cannot build the CUDA kernels: nvcc was not found"),
        ("cpu", "empty", "NPR_KERNELS_BUILD=cpu needs a C++ compiler, and none was found"),
        ("gpu", "full", "NPR_KERNELS_BUILD must be one of auto, cpu, cuda, none, got 'gpu'"),
    ],
)
def test_build_says_what_it_lacks(choice, path, message, tmp_path):
    sources_alone(tmp_path)
    (tmp_path / "bin").mkdir()
    if path == "no nvcc":
        (tmp_path / "bin" / "c++").symlink_to(shutil.which("c++") or sys.executable)
    search = os.environ["PATH"] if path == "full" else str(tmp_path / "bin")
    result = python("setup.py", "--version", folder=tmp_path, NPR_KERNELS_BUILD=choice, PATH=search)
    assert result.returncode != 0
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [
        (
            "setuptools/__init__.py",
            "__version__ = '65.5.0'",
            "the build needs setuptools 77 or later, and setuptools 65.5.0 is installed: pip install -U setuptools",
        ),
        ("torch.py", "raise ImportError", "the extension is compiled against the installed torch, and there is none"),
        ("torch.py", "__version__ = '2.9.1+cpu'", "the extension needs torch 2.10 or later, and torch 2.9.1+cpu is"),
    ],
)
def test_build_says_what_is_too_old(module, code, message, tmp_path):
    """Packages in the environment, as an install without build isolation meets them."""
    sources_alone(tmp_path)
    command = tmp_path / "fakes" / "setuptools" / "command"
    if module.startswith("setuptools"):
        command.mkdir(parents=True)
        (command / "__init__.py").touch()
        (command / "build_py.py").write_text("build_py = object")
    (tmp_path / "fakes" / module).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "fakes" / module).write_text(code)
    compiler = {"NPR_KERNELS_BUILD": "cpu", "PATH": compilers(tmp_path)}
    result = python("setup.py", "--version", folder=tmp_path, PYTHONPATH=str(tmp_path / "fakes"), **compiler)
    assert result.returncode != 0
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


def compilers(folder: Path) -> str:
    """A PATH with something that is called c++, and no nvcc."""
    (folder / "bin").mkdir()
    (folder / "bin" / "c++").symlink_to(sys.executable)
    return str(folder / "bin")


FAKE_TORCH = """
import os
from setuptools import Extension
from setuptools.command.build_ext import build_ext
CppExtension = Extension
__version__, version = "2.10", type("version", (), {"cuda": "13.0"})
class BuildExtension(build_ext):
    def run(self): pass
def CUDAExtension(name, sources, **options):
    print("toolkit", os.environ["CUDA_HOME"], "of", len([file for file in sources if file.endswith(".cu")]))
    print("flags", *options["extra_compile_args"]["nvcc"])
    return Extension(name, sources)
"""


@pytest.mark.parametrize(
    ("architectures", "built"), [("8.0;9.0", "8.0;9.0a"), ("8.0+PTX", "8.0+PTX")], ids=["with Hopper", "without"]
)
def test_the_toolkit_behind_a_script_is_found(architectures, built, tmp_path):
    """An nvcc on the PATH that only calls another, with a torch that has CUDA, as setup.py sees it."""
    sources_alone(tmp_path)
    for module in ("torch", "torch/utils", "torch/utils/cpp_extension"):
        (tmp_path / "fakes" / module).mkdir(parents=True)
        (tmp_path / "fakes" / module / "__init__.py").write_text(FAKE_TORCH)
    path = compilers(tmp_path)
    nvcc = Path(path) / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'tools, release 13.0, V13.0.1'\necho '#$ _HERE_=/opt/toolkit/bin' >&2\n")
    nvcc.chmod(0o755)
    environment = {"NPR_KERNELS_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architectures}
    environment |= {"PYTHONPATH": str(tmp_path / "fakes"), "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    result = python("setup.py", "build_ext", "--inplace", folder=tmp_path, **environment)
    kernels = len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert f"toolkit /opt/toolkit of {kernels}" in result.stdout, result.stderr
    info = json.loads((tmp_path / "npr_kernels" / "_build_info.json").read_text())
    assert info["CUDA architectures"] == built  # with the instructions of Hopper alone
    assert ("-DNPR_WARPGROUPS" in result.stdout) == ("9.0a" in built)  # else a Hopper GPU would run empty kernels


def test_build_none_compiles_nothing(tmp_path):
    sources_alone(tmp_path)
    package = tmp_path / "npr_kernels"
    ignore = shutil.ignore_patterns("*.so", "*.json", "__pycache__")
    shutil.copytree(ROOT / "npr_kernels", package, ignore=ignore, dirs_exist_ok=True)
    hook("build_wheel", tmp_path, NPR_KERNELS_BUILD="none")
    (wheel,) = (tmp_path / "out").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not (package / "_build_info.json").exists()
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    code = "import npr_kernels; print(npr_kernels.available_backends()['cpu'])"
    result = python("-c", code, folder=tmp_path / "installed")
    assert "was not built (NPR_KERNELS_BUILD=none)" in result.stdout, result.stderr


def test_an_editable_install_without_the_extension_removes_an_earlier_one(tmp_path):
    sources_alone(tmp_path)
    (tmp_path / "npr_kernels" / "_C.abi3.so").write_text("built before")
    hook("build_editable", tmp_path, NPR_KERNELS_BUILD="none")
    assert {path.name for path in (tmp_path / "npr_kernels").iterdir()} == {"__init__.py", "_build_info.json"}


@needs_extension
@pytest.mark.xdist_group("packaging")  # compiles what has changed since the package was installed
def test_the_wheel_runs_without_a_compiler_and_a_checkout(tmp_path):
    """One wheel for every Python, installed into a new virtual environment whose PATH has no compiler."""
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    result = python(*build, folder=ROOT, NPR_KERNELS_BUILD=extension.build_info()["NPR_KERNELS_BUILD"])
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"npr_kernels-[\d.]+-cp310-abi3-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert [name for name in names if name.endswith(".so")] == ["npr_kernels/_C.abi3.so"]
    in_git = subprocess.run(["git", "ls-files", *PACKAGES], capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert set(in_git) <= names, "every file of the packages is in the wheel"

    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    bin_folder = environment / "bin"
    install = ["-m", "pip", "--python", str(bin_folder / "python"), "install", "--quiet", "--no-deps", str(wheel)]
    assert python(*install, folder=tmp_path).returncode == 0
    # What the package depends on is taken from here. A path in a .pth file brings no editable installs with it.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "parent.pth").write_text(sysconfig.get_path("purelib"))

    def run(*command: str) -> str:
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": str(bin_folder)})
        assert result.returncode == 0, result.stderr
        return result.stdout

    code = "import json, npr_model; from npr_kernels import info; print(npr_model.__file__, info.__file__)"
    where, facts = run("python", "-c", f"{code}; print(json.dumps(info.collect()))").splitlines()
    assert [Path(file).parents[1] for file in where.split()] == [site_packages, site_packages]
    info = json.loads(facts)
    assert info["extension"] == "loaded" and info["backends"]["cpu"] == "available"
    assert info["build"]["torch"] == torch.__version__
    image = ROOT / "examples" / "real" / "antoine-barres.png"
    assert "1 images: 1 real" in run("npr", "screen", str(image), "--output", "scores.csv").replace("image:", "images:")


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python reads TOML since 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_one_version():
    assert npr_model.__version__ == npr_kernels.__version__ == importlib.metadata.version("npr-kernels")


def test_setup_asks_for_what_pyproject_asks_for(project):
    text = (ROOT / "setup.py").read_text()
    setuptools, torch = project["build-system"]["requires"]
    assert f"OLDEST_SETUPTOOLS = {setuptools.removeprefix('setuptools>=')} " in text
    assert "OLDEST_TORCH = ({}, {}) ".format(*torch.removeprefix("torch>=").split(".")) in text
    assert torch in project["project"]["dependencies"]


def requirements(project: dict) -> list[Requirement]:
    """Everything that pyproject.toml names, without the package itself."""
    texts = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for group in (*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()):
        texts += group
    return [requirement for text in texts if (requirement := Requirement(text)).name != "npr-kernels"]


def test_each_requirement_has_a_pin_within_its_range(project):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    named = requirements(project)
    assert {requirement.name for requirement in named} <= pins.keys()
    assert [str(r) for r in named if not r.specifier.contains(pins[r.name])] == []


# Imported where they are there, and named to the user where they are not: `pip install` of an extra would bring a CUDA
# version or dependencies that are not wanted. triton comes with torch's CUDA builds.
IN_NO_EXTRA = {"gan-face-generate", "nvidia", "triton"}
# Installed for fsspec, which imports them when it meets a URL, or for Ray's and torch's sake.
NOT_IMPORTED = {"aiohttp", "s3fs", "tensorboard"}
# Modules with another name than their package, of extras that need not be installed here.
PACKAGE_OF = {"c2pa": "c2pa-python"}


def imported(folder: Path) -> Iterator[str]:
    """Top-level modules that the files of a package import, inside functions too; npr_model.simulation names packages
    in strings, of models that it reads without importing them."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_every_import_is_declared(project):
    """The other way round too: a dependency that nothing imports is not one."""
    modules = {name for package in PACKAGES for name in imported(ROOT / package)}
    distributions = importlib.metadata.packages_distributions()
    used = {
        canonicalize_name(distributions.get(module, [PACKAGE_OF.get(module, module)])[0])
        for module in modules - {*PACKAGES, *sys.stdlib_module_names}
    }
    extras = project["project"]["optional-dependencies"]
    declared = [Requirement(text) for text in sum(extras.values(), project["project"]["dependencies"])]
    names = {canonicalize_name(requirement.name) for requirement in declared}
    assert used - names - IN_NO_EXTRA == set()
    models = {canonicalize_name(Requirement(text).name) for text in extras["generators"]}
    assert names - used - models - NOT_IMPORTED == set()


@pytest.mark.xdist_group("packaging")
def test_groups_stay_together(request):
    """pytest-xdist marks a test of a group by the end of its name; pytest 9.2 hides that from it, without a word."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not run with --dist loadgroup")
    assert request.node.nodeid.endswith("@packaging")
