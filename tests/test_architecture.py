"""The packages are built in layers: an import leads to a lower room, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("npr_kernels", "npr_model")

# Rooms of npr_model from the top down. A module may import from its own room and from rooms on lower lines. A room is a
# folder of npr_model, or a file beside them. "npr_model" is the package itself, which offers the public names.
LAYERS = (
    ("cli",),
    ("commands",),
    ("npr_model",),
    ("api",),
    ("studies",),
    ("training",),
    ("evaluation",),
    ("simulation",),
    ("screening", "serving"),
    ("scoring",),
    ("explanation", "inference"),
    ("dataset_checks",),
    ("checkpoints", "datasets"),
    ("provenance",),
    ("imaging",),
    ("detectors",),
    ("verdicts", "tables", "figures", "devices"),
    ("files",),
    ("errors", "weights"),
)

# The same for npr_kernels.
KERNEL_LAYERS = (
    ("testing", "info"),
    ("npr_kernels",),
    ("modules",),
    ("functional",),
    ("autograd",),
    ("trunk",),
    ("backends",),
    ("arguments", "batch_norm"),
    ("reference", "tolerance", "cells", "jpeg", "capabilities"),
    ("distributed", "extension", "tracing", "triton_runtime"),
)

# What npr_model may import of npr_kernels: the public names, and these modules.
OPEN_TO_NPR_MODEL = {
    "npr_kernels",
    "npr_kernels.arguments",  # scale factors of raw pixels, for the frozen network
    "npr_kernels.backends.registry",  # to check `--backend`
    "npr_kernels.capabilities",
    "npr_kernels.cells",
    "npr_kernels.distributed",  # SyncBatchNorm, for training on CPUs
    "npr_kernels.info",  # for `npr info`
    "npr_kernels.jpeg",
    "npr_kernels.reference",  # NPR in plain PyTorch, for exported networks
    "npr_kernels.trunk.average_pool",
    "npr_kernels.trunk.cpu_bottleneck",
    "npr_kernels.trunk.gpu_bottleneck",
    "npr_kernels.trunk.layers",
    "npr_kernels.trunk.selection",
}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Modules of these packages that a file imports: at its top, inside functions, and for type checkers alone.

    The latter count: a name that a signature needs is knowledge of the module that has it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                package = package.rsplit(".", node.level - 1)[0]
                base = f"{package}.{base}".rstrip(".")
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] in PACKAGES:
                yield target


def graph(root: Path) -> dict[str, set[str]]:
    """Each module of PACKAGES below ``root`` with the modules that it imports."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    modules = {module_name(path, root): path for path in paths}
    return {name: set(imports(path, name, modules)) - {name} for name, path in modules.items()}


def room(module: str) -> str:
    """The folder or file of a package that holds a module."""
    return module.split(".")[1] if "." in module else module


def wrong_arrows(edges: Mapping[str, set[str]]) -> list[str]:
    """Imports that lead to a higher room or to another room on the same line, and those between the packages that
    are not in OPEN_TO_NPR_MODEL.
    """
    levels = {
        package: {name: number for number, names in enumerate(layers) for name in names}
        for package, layers in (("npr_kernels", KERNEL_LAYERS), ("npr_model", LAYERS))
    }
    wrong = []
    for importer, targets in edges.items():
        for target in targets:
            package, here, there = importer.partition(".")[0], room(importer), room(target)
            if target.partition(".")[0] == package:
                allowed = here == there or levels[package][here] < levels[package][there]
            else:
                allowed = package == "npr_model" and target in OPEN_TO_NPR_MODEL
            if not allowed:
                wrong.append(f"{importer} imports {target}")
    return wrong


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    return graph(ROOT)


@pytest.mark.parametrize(("package", "layers"), [("npr_kernels", KERNEL_LAYERS), ("npr_model", LAYERS)])
def test_every_room_has_a_place(edges, package, layers):
    rooms = {room(name) for name in edges if name.partition(".")[0] == package}
    assert rooms == {name for names in layers for name in names}


def test_imports_lead_downwards(edges):
    assert wrong_arrows(edges) == []


def test_npr_model_uses_what_is_open_to_it(edges):
    targets = set().union(*(targets for name, targets in edges.items() if name.startswith("npr_model")))
    assert {target for target in targets if target.startswith("npr_kernels")} == OPEN_TO_NPR_MODEL


def test_nothing_imports_what_is_for_tests(edges):
    """The table of cases takes time to build."""
    assert not [name for name, targets in edges.items() if "npr_kernels.testing" in targets]


def test_no_circle(edges):
    assert circle(edges) == []


def test_every_room_says_what_it_holds():
    for path in sorted((ROOT / "npr_model").glob("*/__init__.py")):
        lines = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
        assert len([line for line in lines if line]) >= 2, f"{path} does not say in two lines what lives there"


def test_a_circle_and_an_upward_import_are_found(tmp_path):
    files = {
        "npr_model/errors.py": "def late():\n    from npr_model.scoring import scorer",
        "npr_model/scoring/__init__.py": "",
        "npr_model/scoring/scorer.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import rows",
        "npr_model/scoring/rows.py": "import npr_model.scoring.scorer",
        "npr_kernels/info.py": "from npr_model import errors",
        "npr_kernels/reference.py": "from npr_kernels import info",
        "npr_model/files.py": "import npr_kernels.testing",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    edges = graph(tmp_path)
    assert wrong_arrows(edges) == [
        "npr_kernels.info imports npr_model.errors",
        "npr_kernels.reference imports npr_kernels.info",
        "npr_model.errors imports npr_model.scoring.scorer",
        "npr_model.files imports npr_kernels.testing",
    ]
    assert {"npr_model.scoring.scorer", "npr_model.scoring.rows"} <= set(circle(edges))
